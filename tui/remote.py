"""The remote control: the few acts on runs and GPUs, each asked about before it is done."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.app import App

from harness import format as fmt
from nmoe.paths import DataRoot, RunFolder
from tui.feed import Failure, RunView, Success, attempt
from tui.screens.ask import Ask, AskText, Choice, Question
from tui.screens.setup import Launch

if TYPE_CHECKING:  # read with its screen
    from tui.screens.kernels import Measure
    from tui.screens.runs import Delete, Note

STOPPED_BY = "the screen"
RESUMABLE = ("interrupted", "failed", "diverged")


class RemoteControl(App[None]):
    """Launches, stops and resumes runs, and leaves them; read-only it leaves them only."""

    root: DataRoot
    run_folder: RunFolder | None
    view: RunView | None
    is_readonly: bool

    def attach(self, folder: RunFolder) -> None:
        """Watch a run and show it."""
        raise NotImplementedError

    def launch_failed(self) -> None:
        """Allow another try."""
        raise NotImplementedError

    def runs_changed(self) -> None:
        """A run was noted or deleted."""
        raise NotImplementedError

    def action_detach(self) -> None:
        """Leave; the run goes on."""
        self.exit()

    def action_leave(self) -> None:
        """Ask how to leave."""
        if isinstance(self.screen, Question):
            self.screen.dismiss(None)
            return
        choices = [Choice("cancel", "Cancel"), Choice("detach", "Detach: leave, the run goes on")]
        if self.can_stop():
            choices.append(Choice("stop", "Stop and save: end the run with a checkpoint"))
        elif self.run_folder is None:
            choices[1] = Choice("detach", "Leave")
        self.push_screen(Ask("Leave?", choices), self._left)

    def _left(self, answer: str | None) -> None:
        if answer == "stop" and not self._request_stop():
            return
        if answer in ("detach", "stop"):
            self.exit()

    def action_stop_run(self) -> None:
        """Ask, then request a stop."""
        if not self.can_stop() or self.run_folder is None:
            self.notify("no run to stop", markup=False)
            return
        choices = [
            Choice("cancel", "Cancel: the run goes on"),
            Choice("stop", "Stop: save a checkpoint, then end"),
        ]
        question = f"Stop {self.run_folder.run_id}?"
        self.push_screen(Ask(question, choices), self._stop_answered)

    def _stop_answered(self, answer: str | None) -> None:
        if answer == "stop":
            self._request_stop()

    def action_resume_run(self) -> None:
        """Ask, then start the next attempt of a run that is over."""
        if not self.can_resume() or self.run_folder is None:
            self.notify("no run to resume", markup=False)
            return
        choices = [
            Choice("cancel", "Cancel: the run stays as it is"),
            Choice("resume", "Resume: go on from its newest checkpoint"),
        ]
        self.push_screen(Ask(f"Resume {self.run_folder.run_id}?", choices), self._resume_answered)

    def _resume_answered(self, answer: str | None) -> None:
        folder = self.run_folder
        if answer != "resume" or folder is None:
            return

        def work() -> None:
            from harness import launch

            outcome = attempt(lambda: launch.resume(folder))
            self.call_from_thread(self._resumed, outcome)

        self.run_worker(work, thread=True, exclusive=True, group="launch", exit_on_error=False)

    def _resumed(self, outcome: Success[None] | Failure) -> None:
        if isinstance(outcome, Failure):
            self.complain(outcome)
        else:
            self.notify("resumed: it goes on from its newest checkpoint", markup=False)

    def can_resume(self) -> bool:
        view = self.view
        return view is not None and not self.is_readonly and view.status in RESUMABLE

    def can_stop(self) -> bool:
        return bool(self.view and self.view.is_alive) and not self.is_readonly

    def _request_stop(self) -> bool:
        from harness import launch

        folder = self.run_folder
        if folder is None:
            return False
        outcome = attempt(lambda: launch.request_stop(folder, STOPPED_BY))
        if isinstance(outcome, Failure):
            self.complain(outcome)
            return False
        self.notify("stop requested: a checkpoint comes first", markup=False)
        return True

    def on_launch(self, message: Launch) -> None:
        """Start a run and watch it; the work happens off the screen's thread."""
        plan = message.plan

        def work() -> None:
            from harness import launch

            outcome = attempt(lambda: launch.start(plan, self.root))
            self.call_from_thread(self._started, outcome)

        self.run_worker(work, thread=True, exclusive=True, group="launch", exit_on_error=False)

    def _started(self, outcome: Success[RunFolder] | Failure) -> None:
        if isinstance(outcome, Failure):
            self.complain(outcome)
            self.launch_failed()
            return
        self.attach(outcome.value)

    def on_note(self, message: "Note") -> None:
        """Ask for a line, and keep it beside the run."""
        from harness import curate, runs

        run = message.run

        def answered(text: str | None) -> None:
            if text is not None:
                folder = self.root.run(run.run_id)
                self._change(lambda: curate.write_note(folder, text), "noted")

        question = f"Note beside {run.run_id}; an empty one takes it away"
        self.push_screen(AskText(question, text=run.note, max_length=runs.MAX_NOTE), answered)

    def on_delete(self, message: "Delete") -> None:
        """Ask for the id, then delete the run."""
        from harness import curate

        run, folder = message.run, self.root.run(message.run.run_id)
        if run.is_alive:
            self.notify(f"{run.run_id} is alive: stop it first", markup=False)
            return

        def answered(run_id: str | None) -> None:
            if run_id is not None:
                self._change(lambda: curate.delete(folder, self.root), f"deleted {run.run_id}")

        size = fmt.bytes_(curate.size_bytes(folder))
        question = (
            f"Delete {run.run_id}, {size} with its checkpoints? An entry on a board stays, but its"
            " model can no longer be verified. Type the id."
        )
        self.push_screen(AskText(question, wanted=run.run_id), answered)

    def on_measure(self, message: "Measure") -> None:
        """Ask for a part of the bench suite, and start it; its screen sees it at work."""
        from harness import measure

        choices = [Choice(part, f"{part}: {what}") for part, what in measure.PARTS.items()]
        question = "Measure what? It takes all GPUs for minutes."
        self.push_screen(Ask(question, [Choice("cancel", "Cancel"), *choices]), self._measure)

    def _measure(self, part: str | None) -> None:
        from harness import measure

        if part not in measure.PARTS:
            return

        def work() -> None:
            outcome = attempt(lambda: measure.start(part, self.root))
            if isinstance(outcome, Failure):
                self.call_from_thread(self.complain, outcome)

        self.run_worker(work, thread=True, exclusive=True, group="measure", exit_on_error=False)

    def _change(self, act: Callable[[], None], done: str) -> None:
        """Do it off the screen's thread, say what came of it and show the list anew."""

        def work() -> None:
            outcome = attempt(act)
            self.call_from_thread(self._changed, outcome, done)

        self.run_worker(work, thread=True, group="change", exit_on_error=False)

    def _changed(self, outcome: Success[None] | Failure, done: str) -> None:
        if isinstance(outcome, Failure):
            self.complain(outcome)
        else:
            self.notify(done, markup=False)
        self.runs_changed()

    def complain(self, failure: Failure) -> None:
        """Tell why something did not work."""
        text = f"{failure.problem}. {failure.fix}" if failure.fix else failure.problem
        self.notify(text, severity="error", timeout=10, markup=False)
