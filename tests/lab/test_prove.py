"""The page of results: what is measured stands in it, with the papers' directions judged by their intervals."""

from __future__ import annotations

import pytest

from lab.evaluation import magicface_proof, magicid_directions
from lab.evaluation.directions import NOT_SEEN, OPPOSITE, SEEN, Direction, direction, load, save, unshown
from lab.evaluation.magicface import GROUP_VARIANTS, VARIANTS
from lab.evaluation.store import RecordFile, paired, rows_of, whole_rows_of
from lab.prove import main, page, parts_of


@pytest.mark.parametrize(
    ("differences", "at_least", "verdict"),
    [
        ([0.2, 0.3, 0.25, 0.22], 0.0, SEEN),
        ([-0.2, -0.3, -0.25, -0.22], 0.0, OPPOSITE),
        ([-0.2, 0.3, -0.25, 0.22], 0.0, NOT_SEEN),
        ([-0.02, -0.03, 0.01, -0.01], -0.05, SEEN),
        ([-0.2, -0.03, 0.1, -0.1], -0.05, NOT_SEEN),
    ],
)
def test_a_direction_is_judged_by_its_interval(differences, at_least, verdict):
    assert direction("Table 1", "more", "a less b", differences, at_least).verdict == verdict


def test_records_go_on_where_a_run_was_cut_off(tmp_path):
    store = RecordFile(tmp_path)
    assert store.record("one/0/a", lambda: {"similarity": 0.5}) == {"similarity": 0.5}
    store.record("one/0/b", lambda: {"similarity": 0.25})
    with store.file.open("a") as file:
        file.write('{"one/1/a": {"simil')
    again = RecordFile(tmp_path)
    assert again.record("one/0/a", lambda: pytest.fail("measured twice")) == {"similarity": 0.5}
    assert paired(rows_of(again.records, "one"), "a", "b") == [0.25]


def test_a_case_in_which_a_run_was_ended_is_left_out():
    records = {"one/0/a": {}, "one/0/b": {}, "one/1/a": {}, "two/0/a": {}}
    assert list(whole_rows_of(records, "one")) == ["0"]
    assert list(rows_of(records, "one")) == ["0", "1"]
    assert list(whole_rows_of(records, "two")) == ["0"]


def magicface_records(gain: float) -> dict[str, dict]:
    groups = ((magicface_proof.ONE, VARIANTS), (magicface_proof.TWO, GROUP_VARIANTS))
    return {
        f"{section}/{i}/{name}": {
            "similarity": 0.1 + 0.01 * i + (0.0 if name == "vanilla" else gain), "found": 1.0, "prompt": 0.75,
            "colour": 0.1 if section == magicface_proof.ONE else None,
        }
        for section, variants in groups for i in range(3) for name in variants
    }  # fmt: skip


def test_magicface_tables_and_directions():
    records = magicface_records(0.4)
    text = magicface_proof.report(records)
    assert "| vanilla | 0.11 (0.10 to 0.12) | 100% | 0.10 (0.10 to 0.10) | 0.75 (0.75 to 0.75) |" in text
    assert "| MagicFace, regions given | 0.51 (0.50 to 0.52) | 100% | - | 0.75 (0.75 to 0.75) |" in text
    found = magicface_proof.directions(records)
    verdicts = {(one.source, one.measured.split(":")[0]): one.verdict for one in found}
    assert verdicts["Table 1", "similarity, MagicFace less vanilla"] == SEEN
    assert verdicts["Fig. 8", "similarity, alpha 0.4 less alpha 0"] == NOT_SEEN
    assert magicface_proof.directions(magicface_records(-0.4))[0].verdict == OPPOSITE


def test_the_page_holds_what_is_there_and_names_what_is_not(tmp_path):
    folder = tmp_path / "out" / "diir"
    folder.mkdir(parents=True)
    (folder / "tables.md").write_text("### A table\n\n| 1 |\n")
    save(folder, [Direction("Fig. 6", "it says", "0.5", SEEN), unshown("Table 4", "so", "of that")])
    assert len(load(folder)) == 2
    (tmp_path / "diir.jpg").write_bytes(b"x")
    assert main(["--write-only", "--out", str(tmp_path / "out"), "--page", str(tmp_path / "results.md")]) == 0
    text = (tmp_path / "results.md").read_text()
    assert text == page(tmp_path / "out", tmp_path)
    assert "| Fig. 6 | it says | 0.5 | seen |\n| Table 4 | so | - | cannot be shown here, because of that |" in text
    assert "![DIIR face repair](diir.jpg)" in text and "### A table" in text
    assert "Not measured: MagicFace, PersonaMagic, MagicID." in text


def test_what_is_not_measured_again_stays_on_the_page_as_it_stood(tmp_path):
    def measured(name: str, table: str) -> None:
        folder = tmp_path / name / "magicid"
        folder.mkdir(parents=True)
        (folder / "tables.md").write_text(f"### A table\n\n{table}\n")

    measured("old", "| 1 |")
    measured("new", "| 2 |")
    (tmp_path / "old" / "diir").mkdir()
    (tmp_path / "old" / "diir" / "tables.md").write_text("### Faces\n\n| 3 |\n\nThe end.\n")
    file = tmp_path / "results.md"
    for folder in ("old", "new"):
        assert main(["--write-only", "--out", str(tmp_path / folder), "--page", str(file)]) == 0
        if folder == "old":
            old = file.read_text()
    assert "| 1 |" in old and file.read_text() == old.replace("| 1 |", "| 2 |")
    assert parts_of(old)["DIIR face repair"] == "## DIIR face repair\n\n### Faces\n\n| 3 |\n\nThe end.\n"


def test_magicid_directions_count_an_empty_place_as_nothing():
    def group(own, placed):
        return {"own": own, "placed": placed, "other": [0.0], "wrong": [0.0], "prompt": [1.0]}

    records = {}
    for i in range(3):
        records[f"two/{i}/MGMICA"] = group([0.6, 0.6], [1.0, 1.0])
        records[f"two/{i}/plain sum"] = group([0.6], [1.0, 0.0])
    (found, *_) = magicid_directions.directions(records)
    assert found.measured == "FaceSim, MGMICA less plain sum: +0.30 (+0.30 to +0.30), n = 3" and found.verdict == SEEN
