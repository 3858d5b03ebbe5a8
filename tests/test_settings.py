"""Settings: checked with a sentence, declared once, and merged in the right order."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from styleengine import QSAttnSettings, StyleEngine, StyleEngineError, ZStarSettings

NUMBERS = [knob for knob in ZStarSettings.knobs() if knob.type in (int, float)]


@pytest.mark.parametrize("knob", NUMBERS, ids=lambda knob: knob.name)
def test_numbers_are_taken_up_to_their_bounds_and_not_beyond(knob: Any) -> None:
    assert knob.low is not None
    assert knob.high is not None
    for value in (knob.low, knob.high):
        assert getattr(ZStarSettings(**{knob.name: value}), knob.name) == value
    step = 1 if knob.type is int else 1e-3
    for value in (knob.low - step, knob.high + step):
        with pytest.raises(StyleEngineError, match=f"{knob.name} = {re.escape(repr(value))} must be at "):
            ZStarSettings(**{knob.name: value})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 3}, "size = 3 must be at least 64"),
        ({"strength": "much"}, "strength = 'much' must be a number"),
        ({"strength": float("nan")}, "strength = nan must be a finite number"),
        ({"strength": float("-inf")}, "strength = -inf must be a finite number"),
        ({"strength": None}, "strength = None must be a number"),
        ({"strength": True}, "strength = True must be a number, not true or false"),
        ({"steps": True}, "steps = True must be a number, not true or false"),
        ({"steps": 2.5}, "steps = 2.5 must be a whole number"),
        ({"seed": 2**32}, "seed = 4294967296 must be at most 4294967295"),
        ({"size": 10**5000}, "size = a number of thousands of digits must be at most 1536"),
        ({"mode": "paint"}, "mode = 'paint' must be one of these: 'reweight', 'simple_addition' or 'style_only'"),
        ({"measure_reconstruction": "perhaps"}, "measure_reconstruction = 'perhaps' must be true or false"),
        ({"stength": 1.0}, "there is no setting “stength” (there are: strength, size,"),
        ({"self": 1}, "there is no setting “self”"),
        ({"steps": 0, "size": 1}, "size = 1 must be at least 64; steps = 0 must be at least 2"),
    ],
)
def test_wrong_values_become_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StyleEngineError, match=f"^Invalid settings: {re.escape(sentence)}.*\\.$"):
        ZStarSettings(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"strength": "9" * 10_000},
        {"mode": "paint\x1b[31m\n" * 1000},
        {"x\x1b" * 5000: 1},
        {"size": [["much"] * 999] * 999},
        {f"setting {number}": number for number in range(500)},
    ],
    ids=["number", "choice", "name", "list", "many"],
)
def test_a_long_wrong_value_is_shortened_and_printed_without_control_characters(values: dict[str, Any]) -> None:
    with pytest.raises(StyleEngineError) as error:
        ZStarSettings(**values)
    assert len(str(error.value)) < 1500
    assert str(error.value).isprintable()


def test_a_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(StyleEngineError, match=r"prompt = 'caf.*must be text that UTF-8 can hold"):
        QSAttnSettings(prompt="caf\udce9")


def test_settings_are_frozen() -> None:
    settings = ZStarSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.strength = 2.0


def test_knobs_are_as_declared() -> None:
    knobs = {knob.name: knob for knob in ZStarSettings.knobs()}
    assert list(knobs) == list(ZStarSettings.model_fields)
    strength = knobs["strength"]
    assert (strength.title, strength.type, strength.default) == ("Strength λ", float, 1.2)
    assert (strength.low, strength.high, strength.rare) == (0, 4, False)
    mode = knobs["mode"]
    assert (mode.type, mode.choices, mode.rare) == (str, ("reweight", "simple_addition", "style_only"), True)
    assert knobs["first_layer"].title == "First layer"
    assert knobs["measure_reconstruction"].type is bool
    for knob in knobs.values():
        assert knob.description.endswith(".")
        assert knob.default == getattr(ZStarSettings(), knob.name)


def test_replace_changes_checks_and_remembers_what_was_set() -> None:
    settings = ZStarSettings(size=64).replace(steps=4)
    assert (settings.size, settings.steps, settings.strength) == (64, 4, 1.2)
    assert settings.model_fields_set == {"size", "steps"}
    with pytest.raises(StyleEngineError, match="steps = 0 must be"):
        settings.replace(steps=0)


def test_settings_survive_json() -> None:
    settings = ZStarSettings(strength=1.4, mode="style_only", seed=2**32 - 1)
    assert ZStarSettings(**json.loads(json.dumps(settings.model_dump()))) == settings


@pytest.fixture(scope="module")
def recommending(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StyleEngine:
    folder = tmp_path_factory.mktemp("recommending") / "model"
    shutil.copytree(model_folder, folder)
    recommended = {"zstar": {"strength": 2.0, "first_layer": 3, "steps": 3, "size": 80}, "other": {"x": 1}}
    (folder / "recommended.json").write_text(json.dumps(recommended))
    return StyleEngine(str(folder))


def test_explicit_values_beat_recommended_ones_beat_defaults(
    recommending: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    used = recommending.zstar(astronaut, [coffee], ZStarSettings(size=64, strength=1.2)).settings
    assert (used["size"], used["strength"]) == (64, 1.2)  # explicit, one of them equal to the default
    assert (used["first_layer"], used["steps"]) == (3, 3)  # recommended
    assert (used["last_layer"], used["color"]) == (15, "sain")  # the method's own
    used = recommending.zstar(astronaut, [coffee], ZStarSettings(size=64).replace(seed=1)).settings
    assert (used["seed"], used["strength"]) == (1, 2.0)
    assert recommending.zstar(astronaut, [coffee]).settings["size"] == 80


def test_without_a_recommendation_the_defaults_hold(engine: StyleEngine) -> None:
    assert engine.settings_for(ZStarSettings, "zstar", None) == ZStarSettings()


def test_recommended_settings_that_are_not_json_are_named(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "recommended.json").write_text("{zstar: ")
    with pytest.raises(StyleEngineError, match=r"recommended\.json of the model .* is not valid JSON"):
        StyleEngine(str(tmp_path / "model"))


def test_values_of_any_depth_are_quoted_briefly() -> None:
    deep = {"a" * 30: {"b" * 30: ["c" * 30] * 6}, "d" * 30: ["e" * 30] * 6}
    with pytest.raises(StyleEngineError) as refused:
        ZStarSettings(**dict.fromkeys(("size", "steps", "seed", "inversion_iterations", "style_scale"), deep))
    assert len(str(refused.value)) < 600
