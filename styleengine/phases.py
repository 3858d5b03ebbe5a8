"""The phases of a run."""

from enum import Enum


class Stage(Enum):
    """The stage of a phase, with its display text."""

    WAITING = "waiting"
    LOADING = "loading"
    PREVIEW = "preview by StyTr²"
    INVERTING = "inverting"
    STYLIZING = "stylizing"
    RECONSTRUCTING = "reconstruction"
    LEARNING = "learning"


class Phase(str):
    """A phase of a run: a stage and its subject. As a string it is a stable identifier, such as "content 1"."""

    stage: Stage

    def __new__(cls, stage: Stage, text: str = "") -> "Phase":
        phase = super().__new__(cls, text or stage.value)
        phase.stage = stage
        return phase

    def __getnewargs__(self) -> tuple[Stage, str]:
        return self.stage, str(self)

    @property
    def title(self) -> str:
        """The display text: “Inverting content 1”, “Stylizing”."""
        text = f"{self.stage.value} {self}" if self.stage is Stage.INVERTING else str(self)
        return text[:1].upper() + text[1:]

    @property
    def counted(self) -> bool:
        """Whether its steps are the run's own, and not those of waiting for a turn or for a model."""
        return self.stage not in (Stage.WAITING, Stage.LOADING)

    @property
    def previewed(self) -> bool:
        """Whether there is a result to preview; inversions have none."""
        return self.stage in (Stage.STYLIZING, Stage.LEARNING)


WAITING = Phase(Stage.WAITING)
PREVIEW = Phase(Stage.PREVIEW)
STYLIZING = Phase(Stage.STYLIZING)
RECONSTRUCTION = Phase(Stage.RECONSTRUCTING)
LEARNING = Phase(Stage.LEARNING)


def inverting(subject: str) -> Phase:
    """The inversion of "content 1", "style 2" or "frames 1–4"."""
    return Phase(Stage.INVERTING, subject)


def stylizing(subject: str) -> Phase:
    """The stylization of one of several parts, such as "frame 3 of 7"."""
    return Phase(Stage.STYLIZING, f"{Stage.STYLIZING.value} {subject}")


def loading(title: str) -> Phase:
    """The loading of a model, whose steps are the bytes of its files."""
    return Phase(Stage.LOADING, f"{Stage.LOADING.value} {title}")
