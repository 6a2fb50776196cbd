"""Reports and captions -> items: sentences, clauses, repeats, the normal flag, and the round trip through a language model."""

import importlib.util
import json
from pathlib import Path

import pytest

from itemized_clip_hf.data.reports import llm_items as rewrite
from itemized_clip_hf.data.reports.itemize import itemize_captions, itemize_report, normal_item, repeats
from itemized_clip_hf.data.reports.negation import FINDING, REASONS, judge
from itemized_clip_hf.data.reports.sentences import split_sentences
from itemized_clip_hf.data.reports.sources import read_sources
from itemized_clip_hf.domains import load_domain

RADIOLOGY = ("brain-mri", "head-ct", "chest-ct")


def texts(report: str) -> list[str]:
    sentences = split_sentences(report)
    for sentence in sentences:
        assert report[sentence.start : sentence.end] == sentence.text
    assert all(one.end <= two.start for one, two in zip(sentences, sentences[1:]))
    return [sentence.text for sentence in sentences]


@pytest.mark.parametrize(
    "report, expected",
    [
        (
            "A cyst of 1.5 x 2.0 cm. It is bright on T2. Done.",
            ["A cyst of 1.5 x 2.0 cm.", "It is bright on T2.", "Done."],
        ),
        ("Seen by Dr. A. Smith vs. the last scan. Next.", ["Seen by Dr. A. Smith vs. the last scan.", "Next."]),
        ("It is small, e.g. approx. 5 mm. in size. Next.", ["It is small, e.g. approx. 5 mm. in size.", "Next."]),
        ("Lesion No. 3 is stable. No. Next.", ["Lesion No. 3 is stable.", "No.", "Next."]),
        ("Size 1. 5 cm. Ribs 1.,2.,3. are broken.", ["Size 1. 5 cm.", "Ribs 1.,2.,3. are broken."]),
        (
            "Shadow (fibrosis? Scar?) on the left. Cyst? Next.",
            ["Shadow (fibrosis? Scar?) on the left.", "Cyst?", "Next."],
        ),
        ("Calcium in aorta etc. is seen. Clips etc. Next.", ["Calcium in aorta etc. is seen.", "Clips etc.", "Next."]),
        ("The heart is large.The aorta is wide.", ["The heart is large.", "The aorta is wide."]),
        ("1. Left nodule 2. Right effusion in segment 3. Rest. 3. Hernia", None),
        ("• Cyst • Hernia\n- Stent\n* Clip", ["Cyst", "Hernia", "Stent", "Clip"]),
        (
            'Bones are fine. "Cyst on the left " Hernia." Stent',
            ["Bones are fine.", "Cyst on the left", "Hernia.", "Stent"],
        ),
        ('The "halo sign" is seen. Next.', ['The "halo sign" is seen.', "Next."]),
        (
            "Impression: 1. 4 mm cyst. 2. 5 mm stone.\n3.Stent\n4. clips",
            ["4 mm cyst.", "5 mm stone.", "Stent", "clips"],
        ),
        ("A long line that goes\non here.\nNext\nLast", ["A long line that goes\non here.", "Next", "Last"]),
        ("many planes stand in an airport . it is grey .", ["many planes stand in an airport .", "it is grey ."]),
        ("", []),
        (" . \n\n - ", []),
    ],
)
def test_sentences(report, expected):
    if expected is None:
        expected = ["Left nodule", "Right effusion in segment 3.", "Rest.", "Hernia"]
    assert texts(report) == expected


def test_headings_are_left_out_and_remembered():
    report = "TECHNIQUE: Helical CT. Findings: There is a cyst.\nIMPRESSION:\n1. Cyst.\n2. Clinical history: none"
    assert [(s.section, s.text) for s in split_sentences(report)] == [
        ("technique", "Helical CT."),
        ("findings", "There is a cyst."),
        ("impression", "Cyst."),
        ("indication", "none"),
    ]
    with pytest.raises(TypeError, match="as a string, found list"):
        split_sentences(["a"])


@pytest.mark.parametrize(
    "sentence, findings",
    [
        ("No pleural effusion, but a nodule is seen.", ["a nodule is seen."]),
        ("No nodule was observed except for a 3 mm nodule on the left.", ["a 3 mm nodule on the left."]),
        ("Apart from a small nodule, no abnormality is seen.", ["a small nodule"]),
        ("Although no fracture is seen, there is swelling.", ["there is swelling."]),
        (
            "There is no effusion on the right and minimal effusion is seen on the left.",
            ["minimal effusion is seen on the left."],
        ),
        ("Pleural effusion without pneumothorax.", ["Pleural effusion"]),
        ("Vertebral heights are preserved and degenerative changes are seen.", ["degenerative changes are seen."]),
        (
            "Heart size is normal, plaques and wall thickening are seen in the aorta.",
            ["plaques and wall thickening are seen in the aorta."],
        ),
        ("Normal sized heart with a small pericardial effusion.", ["a small pericardial effusion."]),
        ("Findings within normal limits except for a hiatal hernia.", ["a hiatal hernia."]),
        ("When examined in the lung parenchyma window; a nodule is observed.", ["a nodule is observed."]),
        ("Small nodule, follow-up is recommended.", ["Small nodule"]),
        ("Cisterns are patent, no herniation, 3 mm hematoma on the left.", ["3 mm hematoma on the left."]),
        ("Right artery is occluded: no flow is seen.", ["Right artery is occluded"]),
        (
            "Mild prominence of the aorta otherwise vascularity appears within normal limits.",
            ["Mild prominence of the aorta"],
        ),
        ("A plaque is seen and no significant difference was found.", ["A plaque is seen"]),
    ],
)
def test_only_the_clause_with_the_finding_is_kept(sentence, findings):
    assert [sentence[c.start : c.end] for c in judge(sentence) if c.verdict == FINDING] == findings


@pytest.mark.parametrize(
    "sentence",
    [
        "There is no significant change in the nodule.",
        "Pneumonia cannot be excluded.",
        "Pneumothorax is not ruled out.",
        "Lymph nodes not reaching pathological dimensions were observed in the mediastinum.",
        "A density without mass effect was observed in the right hilum (fibrosis?).",
        "A nodule that was not observed in the previous examination is seen.",
        "The heart is larger than normal.",
        "Gallbladder was not observed (operated).",
        "The left kidney was not observed.",
        "Lesion cannot be distinguished from the pleura.",
        "Hypodense lesion in the liver that cannot be characterized in this examination.",
        "Not only a nodule but also an effusion is seen.",
        "There is a midline shift of 5 mm to the left.",
        "Patent foramen ovale.",
        "The mass shows no calcification.",
        "Possible early pneumonia.",
        "Spine: degenerative changes.",
        "Flow void of the left artery is absent.",
    ],
)
def test_kept_whole(sentence):
    assert [(c.verdict, sentence[c.start : c.end]) for c in judge(sentence)] == [(FINDING, sentence)]


@pytest.mark.parametrize(
    "sentence, reason",
    [
        ("Pericardial effusion-thickening was not observed.", "absent"),
        ("There is no mass effect or midline shift.", "absent"),
        ("In the right lung, no nodule, effusion, or mass was seen.", "absent"),
        ("Neither effusion nor pneumothorax is seen.", "absent"),
        ("The effusion is no longer seen.", "absent"),
        ("The heart is not enlarged.", "absent"),
        ("Negative for pneumothorax.", "absent"),
        ("No herniation, mild swelling, or hematoma.", "absent"),
        ("Pleura: no effusion.", "absent"),
        ("Effusion is absent.", "absent"),
        ("Liver: normal in size.", "normal"),
        ("The lungs are otherwise clear.", "normal"),
        ("The consolidation, which was observed in the previous examination, was not detected.", "absent"),
        ("Bone structures in the study area are natural.", "normal"),
        ("Trachea, both main bronchi are open.", "normal"),
        ("Thorax CT examination within normal limits", "normal"),
        ("Intervertebral disc distances are preserved.", "normal"),
        ("The study is unremarkable.", "normal"),
        ("Mediastinal structures cannot be evaluated optimally because contrast material is not given.", "technique"),
        ("Clinical and laboratory correlation is recommended.", "recommendation"),
        ("It was compared with the CT examination dated 05.02.2018.", "comparison"),
        ("There was no significant difference compared to the previous examination.", "comparison"),
        ("Conclusion.", "no content"),
    ],
)
def test_removed_with_its_reason(sentence, reason):
    assert [c.verdict for c in judge(sentence)] == [reason]


REPORT = """TECHNIQUE: Helical CT without contrast.
FINDINGS: The heart is normal in size. No effusion, but a 4 mm nodule is seen in the right upper lobe.
Follow-up is recommended. Sliding hiatal hernia.
IMPRESSION: 1. 4 mm nodule in the right upper lobe. 2. Hiatal hernia (sliding)."""


def test_nothing_of_a_report_is_lost():
    result = itemize_report(REPORT, "chest-ct")
    assert result.items == ["a 4 mm nodule is seen in the right upper lobe.", "Sliding hiatal hernia."]
    assert [" ".join(REPORT[slice(*span)].split()) for span in result.spans] == result.items
    assert not result.is_normal
    assert [(part.reason, part.text) for part in result.removed] == [
        ("technique", "Helical CT without contrast."),
        ("normal", "The heart is normal in size."),
        ("absent", "No effusion"),
        ("recommendation", "Follow-up is recommended."),
        ("duplicate", "4 mm nodule in the right upper lobe."),
        ("duplicate", "Hiatal hernia (sliding)."),
    ]
    left = list(REPORT)
    for start, end in [*result.spans, *((part.start, part.end) for part in result.removed)]:
        left[start:end] = " " * (end - start)
    assert "".join(left).split() == ["TECHNIQUE:", "FINDINGS:", ",", "but", "IMPRESSION:", "1.", "2."]


@pytest.mark.parametrize("domain", RADIOLOGY)
@pytest.mark.parametrize(
    "report, normal",
    [
        ("The lungs are clear. No pleural effusion.", True),
        ("The study is unremarkable.", True),
        ("No significant abnormalities.", True),
        ("No abnormalities detected", True),
        ("The study is unremarkable except for a cyst.", False),
        ("The lungs are clear. There is a nodule.", False),
        ("Follow-up is recommended.", False),
        ("", False),
    ],
)
def test_normal_flag_agrees_with_the_domain(domain, report, normal):
    result = itemize_report(report, domain)
    assert result.is_normal == normal
    assert load_domain(domain).is_normal(result.items) == normal
    assert load_domain(domain).is_normal(itemize_report(report).items) == normal
    if normal:
        assert result.items == [normal_item(domain)] and result.spans == [None]


def test_domains_without_normal_rule_have_no_normal_item():
    result = itemize_report("The lungs are clear.", "remote-sensing")
    assert (result.items, result.is_normal, normal_item("remote-sensing")) == ([], False, None)
    assert [part.reason for part in result.removed] == ["normal"]


@pytest.mark.parametrize(
    "later, first",
    [
        ("many planes are parked next to a long building in an airport .", 0),
        ("Many planes parked next to the long building in the airports", 0),
        ("a few planes are parked next to a long building in an airport .", None),
        ("many planes are parked next to a long red building in an airport .", None),
        ("two planes are parked next to a long building in an airport .", None),
        ("many planes are parked .", None),
    ],
)
def test_near_repeats(later, first):
    assert repeats(["many planes are parked next to a long building in an airport .", later]) == [None, first]


def test_sides_and_sizes_are_no_repeats():
    nodules = [
        "5 mm nodule in the right upper lobe",
        "6 mm nodule in the right upper lobe",
        "5 mm nodule in the left upper lobe",
    ]
    assert repeats(nodules) == [None] * 3
    assert repeats(["calcified aorta", "calcified plaques of aorta", "calcified aorta"], 1.0) == [None, None, 0]
    assert repeats(["calcified aortic plaque wall arch", "calcified aortic plaque arch"], 0.8) == [None, 0]


def test_a_repeat_may_not_name_more():
    long = "calcified atherosclerotic changes in the wall of the thoracic aorta and left coronary artery"
    assert repeats([long, f"{long}, mild dilatation"]) == [None, None]
    assert repeats([f"{long}, mild dilatation", long]) == [None, 0]
    forms = [
        "linear atelectasis in the left lower basal lobe",
        "linear atelectatic changes in the left lower basal lobe",
    ]
    assert repeats(forms, 0.6) == [None, 0]


def test_captions_keep_their_words():
    captions = [" Two planes stand . ", "two planes stand .", "a lake .", "", "there are two planes standing ."]
    result = itemize_captions(captions)
    assert result.items == ["Two planes stand .", "a lake .", "there are two planes standing ."]
    joined = "\n".join(captions)
    assert [joined[slice(*span)] for span in result.spans] == result.items
    assert [(part.text, part.reason) for part in result.removed] == [("two planes stand .", "duplicate")]
    assert itemize_captions("a lake . a lake . trees .").items == ["a lake .", "trees ."]


CAPTIONS = [
    "two white planes are parked on the runway",
    "a pair of white planes near a terminal",
    "planes parked beside the terminal with a red truck",
    "white planes on a runway",
]
SOURCES = {
    "a": "There is a 5 x 7 mm nodule in the right upper lobe. It is calcified. No pleural effusion. Cyst in the left kidney.",
    "b": "The lungs are clear. No pleural effusion.",
}


def answer_line(name, *entries, marker=rewrite.MARKER, field="answer"):
    return json.dumps({"id": name, field: f"draft ||finalist|| old | x\nround two {marker} {' | '.join(entries)}"})


def test_prompts_name_marker_and_sources():
    system, user = rewrite.make_prompt(CAPTIONS, "captions")
    assert (
        system["role"] == "system"
        and "||finalist||" in system["content"]
        and "two of the captions" in system["content"]
    )
    assert user["content"].splitlines()[3] == "Caption 4: white planes on a runway"
    system, user = rewrite.make_prompt(SOURCES["a"], normal="nothing to see")
    assert "the only entry is: nothing to see" in system["content"] and "||finalist||" in system["content"]
    assert user == {"role": "user", "content": SOURCES["a"]}
    with pytest.raises(ValueError, match="'poem', expected 'report' or 'captions'"):
        rewrite.make_prompt("x", "poem")


def test_the_last_marker_counts():
    assert rewrite.parse_answer("||finalist|| old | older\n||finalist|| one.|  two\nlines | | .") == [
        "one.",
        "two lines",
    ]
    assert rewrite.parse_answer("||finalist||  ") == [] and rewrite.parse_answer("one | two") is None


def test_answers_that_hold():
    lines = [
        answer_line("a", "5 x 7 mm calcified nodule in the right upper lobe", "Cysts in left kidney", field="content"),
        "",
        json.dumps(
            {"id": "b", "messages": [{"role": "assistant", "content": "||finalist|| No significant abnormalities"}]}
        ),
    ]
    accepted, rejected = rewrite.read_answers(lines, SOURCES, domain="chest-ct")
    assert rejected == []
    assert accepted["a"] == ["5 x 7 mm calcified nodule in the right upper lobe", "Cysts in left kidney"]
    assert all(load_domain(name).is_normal(accepted["b"]) for name in RADIOLOGY)


@pytest.mark.parametrize(
    "line, reason, detail",
    [
        ('{"id": "a", "answer": ', rewrite.MALFORMED, "expected a JSON object"),
        ("[1]", rewrite.MALFORMED, "found list"),
        ('{"answer": "x"}', rewrite.NO_ID, "found ['answer']"),
        (answer_line("zz", "cyst"), rewrite.UNKNOWN_ID, "'zz'"),
        ('{"id": "a", "text": "x"}', rewrite.NO_ANSWER, "found ['id', 'text']"),
        ('{"id": "a", "answer": "a nodule | a cyst"}', rewrite.NO_MARKER, "||finalist||"),
        ('{"id": "a", "answer": "x ||finalist|| | ."}', rewrite.NO_ENTRIES, "there is nothing after"),
    ],
)
def test_answers_that_are_rejected_whole(line, reason, detail):
    accepted, rejected = rewrite.read_answers([line], SOURCES)
    assert accepted == {}
    assert [(part.line, part.reason) for part in rejected] == [(1, reason)] and detail in rejected[0].detail


@pytest.mark.parametrize(
    "entry, reason, detail",
    [
        ("Emphysema", rewrite.UNSUPPORTED, "emphysema"),
        ("8 mm nodule in the right upper lobe", rewrite.UNSUPPORTED, "8"),
        ("5 cm nodule in the right upper lobe", rewrite.UNSUPPORTED, "5 cm"),
        ("nodule in the left upper lobe", rewrite.UNSUPPORTED, "left"),
        ("cysts in both kidneys", rewrite.UNSUPPORTED, "left, right"),
        ("nodule in the right lower lobe", rewrite.UNSUPPORTED, "lower"),
        ("Pleural effusion", rewrite.DENIED, "absence"),
        ("No significant abnormalities.", rewrite.NORMAL_BESIDE_FINDINGS, "other entries"),
        ("The cyst of the left kidney", rewrite.REPEATED, "'cyst in left kidney'"),
        ("it is there", rewrite.UNSUPPORTED, "no word"),
    ],
)
def test_entries_that_the_report_does_not_support(entry, reason, detail):
    accepted, rejected = rewrite.read_answers([answer_line("a", "cyst in left kidney", entry)], SOURCES)
    assert accepted == {"a": ["cyst in left kidney"]}
    assert [(part.id, part.reason, part.content) for part in rejected] == [("a", reason, entry)]
    assert detail in rejected[0].detail


def test_a_normal_answer_needs_a_normal_report_and_an_empty_one_is_rejected():
    lines = [answer_line("a", "no significant abnormalities."), answer_line("b", "emphysema")]
    accepted, rejected = rewrite.read_answers(lines, SOURCES)
    assert accepted == {}
    assert [(part.line, part.reason) for part in rejected] == [
        (1, rewrite.NORMAL_BESIDE_FINDINGS),
        (1, rewrite.NOTHING_LEFT),
        (2, rewrite.UNSUPPORTED),
        (2, rewrite.NOTHING_LEFT),
    ]
    assert "5 x 7 mm nodule" in rejected[0].detail


def test_second_answers_count_only_where_the_first_failed():
    lines = [answer_line("a", "emphysema"), answer_line("a", "cyst"), answer_line("a", "nodule")]
    accepted, rejected = rewrite.read_answers(lines, SOURCES)
    assert accepted == {"a": ["cyst"]}
    assert (rejected[-1].line, rejected[-1].reason) == (3, rewrite.DUPLICATE_ID)


def test_captions_need_two_sources():
    entries = ["White planes are parked.", "Planes stand near a red truck.", "A terminal.", "A white runway"]
    accepted, rejected = rewrite.read_answers([answer_line("p", *entries)], {"p": CAPTIONS}, "captions")
    assert accepted == {"p": ["White planes are parked.", "A terminal.", "A white runway"]}
    assert [(part.reason, part.content) for part in rejected] == [(rewrite.UNSUPPORTED, entries[1])]
    assert "red (1)" in rejected[0].detail and "truck (1)" in rejected[0].detail
    one = ["a red truck", "the red truck"]  # one source said twice
    accepted, rejected = rewrite.read_answers([answer_line("p", "a red truck")], {"p": one}, "captions")
    assert accepted == {} and rejected[0].reason == rewrite.UNSUPPORTED


@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("r.txt", "x", {}, "expected .jsonl"),
        ("r.jsonl", '{"id": 1, "body": "x"}', {}, "none of the columns"),
        ("r.jsonl", '{"id": 1, "report": "x"}\n{"id": 1, "report": "y"}', {}, "row 1: duplicate id '1'"),
        ("r.jsonl", '{"id": 1, "report": 5}', {}, "row 0 (1), report: expected a string, found int"),
        ("r.jsonl", '{"id": 1, "report": ["x"]}', {}, "--kind captions takes lists"),
        ("r.jsonl", '{"id": 1, "report": "x"', {}, "line 1: no JSON"),
        ("r.csv", "id,report\n", {}, "is empty"),
        ("r.csv", "id,report\n1,a,b\n", {}, "more or fewer fields than the header"),
        ("r.csv", "id,report\n1,a\n", {"text_columns": ["body"]}, "no column 'body'; its columns are ['id', 'report']"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_sources(tmp_path / name, **options)
    assert message in str(error.value)


def test_columns_of_text_are_joined_and_not_passed_on(tmp_path):
    (tmp_path / "r.csv").write_text(
        'uid,findings,impression,indication,split\n7,"Cyst.","1. Cyst",pain,val\n8,,,,train\n'
    )
    one, two = read_sources(tmp_path / "r.csv")
    assert (one.id, one.text, one.others) == ("7", "Cyst.\n\n1. Cyst", {"split": "val"})
    assert (two.text, itemize_report(two.text).items) == ("", [])
    assert read_sources(tmp_path / "r.csv", keep_text=True)[0].others == {"indication": "pain", "split": "val"}


def load_benchmark():
    path = Path(__file__).parents[3] / "benchmarks" / "itemize.py"
    spec = importlib.util.spec_from_file_location("itemize_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reports_folder(data_folder) -> Path:
    if not (data_folder / "reports" / "chest_ct_reports.jsonl.gz").exists():
        pytest.skip(f"no reports in {data_folder}")
    return data_folder / "reports"


def test_items_of_real_reports_keep_findings_and_drop_absences(data_folder):
    figures = load_benchmark().chest_ct(reports_folder(data_folder), "val")
    plain, items = figures["plain sentences"]["average"], figures["items"]["average"]
    assert items["reports"] == 200
    assert items["named where present"] >= 0.95
    assert items["named where absent"] <= 0.05
    assert plain["named where absent"] > 0.15  # the same words find what is denied, too


CONNECTIVES = set(
    "and in addition however from with although apart this except for but also these that other than".split()
)


def test_nothing_but_connectives_and_list_marks_of_real_reports_is_lost(data_folder):
    for source in read_sources(reports_folder(data_folder) / "chest_ct_reports.jsonl.gz")[:800:5]:
        result = itemize_report(source.text, "chest-ct")
        assert result.is_normal == load_domain("chest-ct").is_normal(result.items)
        assert {part.reason for part in result.removed} <= {*REASONS, "duplicate", "history"}
        left = list(source.text)
        for start, end in [*(span for span in result.spans if span), *((p.start, p.end) for p in result.removed)]:
            assert "\0" not in left[start:end]  # no character counts twice
            left[start:end] = "\0" * (end - start)
        words = "".join(left).replace("\0", " ").lower().split()
        words = [word.strip('.,;:"“”•·?()') for word in words]
        assert {word for word in words if not word.isdigit()} - {""} <= CONNECTIVES


def test_normal_chest_x_rays_are_recognised(data_folder):
    folder = reports_folder(data_folder)
    if not (folder / "indiana_chest_xray_reports.csv").exists():
        pytest.skip(f"no chest X-ray reports in {folder}")
    figures, _ = load_benchmark().chest_x_ray(folder)
    assert figures["normal called normal"] >= 0.9
    assert figures["abnormal called normal"] <= 0.01


@pytest.mark.parametrize(
    ("report", "items"),
    [
        (
            "A 3 cm mass in the left frontal lobe with surrounding vasogenic edema and mild midline shift.",
            ["A 3 cm mass in the left frontal lobe", "surrounding vasogenic edema and mild midline shift."],
        ),
        (
            "Mass with marked surrounding edema, and with an associated hemorrhage.",
            ["Mass", "marked surrounding edema", "an associated hemorrhage."],
        ),
        ("A mass with irregular margins.", ["A mass with irregular margins."]),
        ("The left lobe with adjacent nodule.", ["The left lobe with adjacent nodule."]),
        ("No mass with surrounding edema.", ["no significant abnormalities."]),
    ],
)
def test_what_goes_with_a_finding_is_an_item(report, items):
    found = itemize_report(report, "brain-mri")
    assert found.items == items
    assert [report[slice(*span)] for span in found.spans if span] == [
        item for item, span in zip(items, found.spans) if span
    ]
