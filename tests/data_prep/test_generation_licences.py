"""Whose licences the traces come under: as the options say, else as the models' own cards do."""

from pathlib import Path

import pytest

from data_prep.curation.card import Card, Facts, Origin, dataset_card
from data_prep.generation import HFEngine, OpenAIEngine, SeveralEngines, VLLMEngine
from data_prep.generation.engine import own_licence
from reasonforge.config import key_config


def model(directory: Path, card: str) -> str:
    directory.mkdir()
    (directory / "README.md").write_text(card)
    return str(directory)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- math\n---\n# A model", {"a": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", {"a": "qwen-research"}),
        ("---\nlicense: other\n---\n", {"a": "other"}),
        ("---\nlicense: [mit]\n---\n", {}),
        ("---\ntags: [math\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("# A model\n\n---\nlicense: mit\n---\n", {}),
        ("", {}),
        ("---", {}),
    ],
)
def test_a_models_card_says_its_licence(tmp_path: Path, card: str, expected: dict[str, str]) -> None:
    directory = model(tmp_path / "a", card)
    assert own_licence("a", None, directory) == expected
    assert own_licence("a", "mit", directory) == {}
    assert own_licence("a", None, str(tmp_path)) == {}
    assert own_licence("a", None, "Qwen/Qwen3-8B") == {}


def test_engines_say_what_they_find(tmp_path: Path) -> None:
    one = model(tmp_path / "one", "---\nlicense: mit\n---\n")
    two = model(tmp_path / "two", "---\nlicense: gemma\n---\n")
    engines = [
        HFEngine(model_path=one),
        VLLMEngine(model_path=two, served_name="second"),
        OpenAIEngine(base_url="http://127.0.0.1:1/v1", model="o", licence="llama3.1"),
        HFEngine(model_path=two, licence="apache-2.0"),
    ]
    found = [engine.found_licences() for engine in engines]
    assert found == [{"one": "mit"}, {"second": "gemma"}, {}, {}]
    assert HFEngine().found_licences(Path(one)) == {"one": "mit"}
    several = SeveralEngines(engines=engines)
    assert several.found_licences() == {"one": "mit", "second": "gemma"}
    origin = Origin("generate", "traces", "2" * 64, {"engine": key_config(several)}, several.found_licences())
    told = dataset_card(Card(), Facts([origin], {}, {"steps": []}, 1)).partition("## Licences")[2]
    assert told.splitlines()[4:] == [
        "| this dataset | not said |",
        "| generate.engine.engines.2 | llama3.1 |",
        "| generate.engine.engines.3 | apache-2.0 |",
        "| generate: one | mit |",
        "| generate: second | gemma |",
    ]


def test_a_licence_asks_nothing_anew(tiny_model: Path, tmp_path: Path) -> None:
    """What was answered is kept when somebody adds the licence."""
    engine = VLLMEngine(executable=["true"], replicas=1)
    with_licence = engine.model_copy(update={"licence": "mit"})
    one, other = (each.service(scratch=tmp_path, seed=0, model=tiny_model) for each in (engine, with_licence))
    assert one.identity == other.identity
