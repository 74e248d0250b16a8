"""The start screen: what this machine is, what it would run and why, what stands in the way."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from nmoe.paths import DataRoot, preset_names
from tui.screens import proposal
from tui.screens.named import NamedScreen
from tui.screens.request import Request
from tui.widgets.numbers import Numbers
from tui.widgets.prose import Paragraphs, Prose

if TYPE_CHECKING:
    from harness.hardware import Detection
    from nmoe.config import Plan
    from tui.screens.offer import Offer


class Launch(Message):
    """A person wants this plan to run."""

    def __init__(self, plan: "Plan") -> None:
        super().__init__()
        self.plan = plan


class Offered(Message):
    """What there is to say to a request."""

    def __init__(self, offer: "Offer", request: Request) -> None:
        super().__init__()
        self.offer = offer
        self.request = request


class Presets(OptionList):
    """The list of presets; enter on one launches what is shown for it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "launch", tooltip="start the run that is shown")
    ]


class SetupScreen(NamedScreen):
    """Presets, the plan of the marked one beside them, problems below; enter launches."""

    NAME = "start"

    def __init__(
        self,
        root: DataRoot,
        request: Request,
        offer: "Callable[[Request, Detection | None], Offer]",
        *,
        is_readonly: bool = False,
    ) -> None:
        super().__init__()
        self._root = root
        self._make_offer = offer
        self._request = request
        self._is_readonly = is_readonly
        self._detection: Detection | None = None
        self._offer: Offer | None = None
        self._is_launching = False
        self._names = _preset_names(request)
        self._machine = Paragraphs((("looking at this machine …", "dim"),), id="machine")
        self._plan = Numbers((), id="plan")
        self._why = Paragraphs((), id="why")
        self._problems = Paragraphs((), id="problems")
        self._presets = Presets(
            *(Option(Content(name or "what suits this machine")) for name in self._names),
            id="presets",
        )

    def panels(self) -> ComposeResult:
        self._machine.border_title = "this machine"
        self._presets.border_title = "preset"
        # A list of automatic height cannot be measured in a terminal of one column.
        self._presets.styles.height = len(self._names) + 2
        yield Prose((((" start: needs 60 x 16 cells", "dim"),),), id="small")
        yield self._machine
        with Container(id="choose"):
            yield self._presets
            with VerticalScroll(id="planned", can_focus=False) as planned:
                planned.border_title = "plan"
                yield self._why
                yield self._plan
        with VerticalScroll(id="blockers") as blockers:
            blockers.border_title = "before the start"
            yield self._problems

    def on_mount(self) -> None:
        wanted = self._request.preset
        self._presets.highlighted = self._names.index(wanted) if wanted in self._names else 0
        self._presets.focus()

    def on_screen_resume(self) -> None:
        """Look again: a run may have ended, a disk filled up."""
        self.launch_failed()
        self._plan_again()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._plan_again()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._launch()

    def _launch(self) -> None:
        """Launch what is shown, once, unless something stands in the way."""
        offer = self._offer
        if self._is_readonly:
            self.notify("this screen only looks: it was started with --readonly", markup=False)
        elif offer is None or offer.plan is None or not offer.is_ready:
            problems = offer.problems if offer else ()
            blocking = [p.what for p in problems if p.is_blocking] or ["no plan yet"]
            self.notify(f"cannot launch: {blocking[0]}", severity="error", markup=False)
        elif not self._is_launching:
            self._is_launching = True
            self.notify("launching …", markup=False)
            self.post_message(Launch(offer.plan))

    def launch_failed(self) -> None:
        """Allow another try."""
        self._is_launching = False

    def _plan_again(self) -> None:
        """Plan, once the screen shows what is asked: threads share one interpreter."""
        self.call_after_refresh(self._start_to_plan)

    def _start_to_plan(self) -> None:
        self.run_worker(self._plan_now, thread=True, exclusive=True, exit_on_error=False)

    def _plan_now(self) -> None:
        index = self._presets.highlighted or 0
        request = replace(self._request, preset=self._names[index])
        self.post_message(Offered(self._make_offer(request, self._detection), request))

    def on_offered(self, message: Offered) -> None:
        offer, request = message.offer, message.request
        if request.preset != self._names[self._presets.highlighted or 0]:
            return  # another preset was marked meanwhile
        self._offer, self._detection = offer, offer.detection
        self.set_class(not offer.is_ready, "-blocked")
        self._machine.show(proposal.machine(offer.detection, self._root))
        self._why.show(proposal.why(offer.plan, offer.time))
        self._plan.show(proposal.values(offer.plan, offer.outlook))
        self._problems.show(proposal.problems(offer.problems, is_ready=offer.is_ready))


def _preset_names(request: Request) -> tuple[str | None, ...]:
    """None (the machine decides), the presets, and a TOML path that was named."""
    names: list[str | None] = [None, *preset_names()]
    if request.preset is not None and request.preset not in names:
        names.insert(1, request.preset)
    return tuple(names)
