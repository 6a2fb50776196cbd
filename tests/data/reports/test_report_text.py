"""Reports as exports write them: line ends, markup, lists, fields, denials behind the finding, and the frame of a report."""

import re

import pytest

from itemized_clip_hf.data.reports.itemize import itemize_report
from itemized_clip_hf.data.reports.sources import read_sources


@pytest.mark.parametrize(
    "end",
    ["\r", "\r\n", "\u2028", "\u2029", "\x85", "\v", "\f", "<br>", "<BR/>", "</p><p>", "&#10;", "\\n", "_x000D_\n"],
)
def test_every_line_end_parts_a_denial_from_a_finding(end):
    report = f"No effusion{end}Left lung nodule"
    result = itemize_report(report)
    assert result.items == ["Left lung nodule"] and not result.is_normal
    assert report[slice(*result.spans[0])] == "Left lung nodule"


def test_rtf_paragraphs():
    report = r"{\rtf1\ansi{\fonttbl{\f0 Arial;}}\f0 No effusion.\par Left lung nodule.\par}"
    assert itemize_report(report).items == ["Left lung nodule."]


@pytest.mark.parametrize(
    "report",
    [
        "-Left effusion\n-No pneumothorax\n-Right nodule",
        "1/ Left effusion\n2/ No pneumothorax\n3/ Right nodule",
        "1: Left effusion\n2: No pneumothorax\n3: Right nodule",
        "a) Left effusion\nb) No pneumothorax\nc) Right nodule",
        "I. Left effusion\nII. No pneumothorax\nIII. Right nodule",
        "1.Left effusion.2.No pneumothorax.3.Right nodule",
        "Left effusion | No pneumothorax | Right nodule",
    ],
)
def test_lists(report):
    assert [item.rstrip(".") for item in itemize_report(report).items] == ["Left effusion", "Right nodule"]


@pytest.mark.parametrize(
    "report",
    [
        "Pneumothorax: None.",
        "Pneumothorax: not seen",
        "Effusion - none",
        "Effusion = absent",
        "[ ] Pneumothorax",
        "Infarct was ruled out.",
        "There isn't a nodule.",
        "Fracture could not be identified.",
        "No pathological increase in wall thickness was detected.",
        "Bones are without fracture.",
    ],
)
def test_absent(report):
    assert [part.reason for part in itemize_report(report).removed] == ["absent"]


@pytest.mark.parametrize(
    "report",
    [
        "No increase in the size of the aneurysm.",
        "No resolution of the pneumothorax.",
        "The 8 mm nodule has not increased.",
        "The fracture is not displaced.",
        "The effusion has not resolved.",
        "Nodule in the R. lower lobe.",
        "L. kidney cyst.",
        "Fracture cannot entirely be excluded.",
    ],
)
def test_present(report):
    assert itemize_report(report).items == [report]


def test_the_frame_of_a_report_is_no_item():
    report = (
        " FINAL REPORT\n EXAMINATION:  CHEST\n \n INDICATION:  Lung nodule\n \n"
        "{}FINDINGS{} \n \n Clear lungs.\n \n IMPRESSION{} \n \n {}\n"
    )
    assert itemize_report(report.format("", ":", ":", "No acute process.")).is_normal
    assert itemize_report(report.format("", "", "", "Left effusion.")).items == ["Left effusion."]


@pytest.mark.parametrize("report", ["None", "nan", "N/A", "null", "Not given.", "None available.", "Unknown"])
def test_a_missing_report_is_not_normal(report):
    result = itemize_report(report)
    assert (result.items, result.is_normal) == ([], False)


@pytest.mark.parametrize(
    ("report", "item"),
    [
        ("No cardiomegaly with bilateral small effusions.", "bilateral small effusions."),
        ("No pneumothorax, left effusion.", "left effusion."),
        ("No pneumothorax and left effusion.", "left effusion."),
        ("No pneumothorax, effusion on the left.", "effusion on the left."),
        ("No pneumothorax (left effusion).", "left effusion"),
        ("No pneumothorax, possible left effusion.", "possible left effusion."),
        ("No pneumothorax is seen with small left effusion.", "small left effusion."),
        ("Pneumothorax is not seen, left effusion.", "left effusion."),
        ("No acute infarct with a 5 mm aneurysm.", "a 5 mm aneurysm."),
        ("There is no consolidation, bibasilar atelectasis.", "bibasilar atelectasis."),
        ("Negative for fracture with left knee effusion.", "left knee effusion."),
        ("No acute process, chronic infarct in the left frontal lobe.", "chronic infarct in the left frontal lobe."),
        ("No pneumothorax however left effusion.", "left effusion."),
    ],
)
def test_what_follows_a_denial_stays_if_it_says_where_or_how_large(report, item):
    result = itemize_report(report)
    assert result.items == [item] and not result.is_normal
    assert report[slice(*result.spans[0])] == item


@pytest.mark.parametrize(
    "report",
    [
        "No pneumothorax, effusion or consolidation.",
        "No pneumothorax, pleural effusion, or left lung nodule.",
        "No left effusion, right effusion or pneumothorax.",
        "No right and left pleural effusion.",
        "No pneumothorax, effusion, and consolidation.",
        "No fracture with displacement.",
        "No mass with mild enhancement.",
        "No lymph node with a short axis larger than 1 cm was observed.",
        "No mass, left lung nodule was seen.",
    ],
)
def test_lists_of_denied_findings_stay_denied(report):
    result = itemize_report(report)
    assert result.is_normal and [part.reason for part in result.removed] == ["absent"]


@pytest.mark.parametrize(
    "report",
    [
        "Malignancy should be excluded.",
        "Rule out malignancy.",
        "Please exclude neoplasm.",
        "Tuberculosis must be excluded.",
        "CT is recommended to rule out malignancy.",
    ],
)
def test_what_has_to_be_excluded_is_an_uncertain_item(report):
    assert itemize_report(report).items == [report]
    assert not itemize_report(f"No effusion. {report}").is_normal


@pytest.mark.parametrize(
    "report", ["Malignancy was ruled out.", "No evidence of malignancy.", "CT rules out pneumonia."]
)
def test_what_was_excluded_is_absent(report):
    assert itemize_report(report).is_normal


@pytest.mark.parametrize(
    "report",
    ["Patient denies pain.", "Pt denies chest pain, cough or fever.", "Denies trauma.", "She denied any injury."],
)
def test_what_a_patient_denies_is_no_normal_study(report):
    result = itemize_report(report)
    assert (result.items, result.is_normal) == ([], False)
    assert itemize_report(f"{report} No effusion.").is_normal


NORMAL_REPORTS = [
    (
        " WET READ: ___ ___ ___ 9:12 AM\n"
        " No acute process.\n"
        "______________________________________________________________________________\n"
        " FINAL REPORT\n"
        " HISTORY:  ___-year-old female with cough.\n"
        " \n"
        " COMPARISON:  None.\n"
        " \n"
        " TECHNIQUE:  Chest PA and lateral.\n"
        " \n"
        " FINDINGS:  The lungs are clear.  No pleural effusion.\n"
        " \n"
        " IMPRESSION:  No acute cardiopulmonary process.\n"
    ),
    (
        " FINAL REPORT\n"
        " HISTORY:  Chest pain.\n"
        " \n"
        " COMPARISON:  None.\n"
        " \n"
        " FINDINGS: PA and lateral views of the chest provided.   There is no focal consolidation, effusion, or pneumothorax."
        " The cardiomediastinal silhouette is normal.\n"
        " \n"
        " IMPRESSION: No acute intrathoracic process.\n"
        " \n"
        " Dictated by Dr. ___ \n"
        " Electronically signed by: ___, MD on ___ 10:00 AM"
    ),
    (
        "EXAMINATION: CT HEAD W/O CONTRAST\n"
        "\n"
        "INDICATION: ___ with fall, rule out bleed.\n"
        "\n"
        "TECHNIQUE: Contiguous axial images of the brain were obtained without contrast.\n"
        "\n"
        "DOSE: DLP: 891 mGy-cm\n"
        "\n"
        "COMPARISON: None.\n"
        "\n"
        "FINDINGS:\n"
        "\n"
        "There is no evidence of infarction, hemorrhage, edema, or mass.\n"
        "\n"
        "IMPRESSION:\n"
        "\n"
        "No acute intracranial process.\n"
        "\n"
        "NOTIFICATION: Findings were discussed with Dr. ___ by phone at ___."
    ),
    (
        "HISTORY: Fever.\n"
        "COMPARISON: None.\n"
        "TECHNIQUE: PA and lateral.\n"
        "Lungs are clear.\n"
        "Dictated by: ___\n"
        "Electronically signed by ___ on ___ at 10:02"
    ),
    (
        "Report: No effusion.\n"
        "This report was electronically signed by ___.\n"
        "I, the attending physician, have reviewed the images and agree with the report."
    ),
]
REPORTS_WITH_A_FINDING = [
    (
        (
            " FINAL ADDENDUM\n"
            " ADDENDUM  There is a 5 mm nodule in the right upper lobe.\n"
            "______________________________________________________________________________\n"
            " FINAL REPORT\n"
            " EXAMINATION:  CHEST (PORTABLE AP)\n"
            " \n"
            " INDICATION:  ___ year old man with pneumonia // eval effusion\n"
            " \n"
            " TECHNIQUE:  Portable AP chest\n"
            " \n"
            " COMPARISON:  ___\n"
            " \n"
            " FINDINGS: \n"
            " \n"
            " Heart size is normal. No effusion.\n"
        ),
        "There is a 5 mm nodule in the right upper lobe.",
    ),
    (
        (
            " FINAL REPORT\n"
            " CHEST RADIOGRAPH\n"
            " \n"
            " INDICATION:  Pneumonia.\n"
            " \n"
            " COMPARISON:  ___.\n"
            " \n"
            " FINDINGS:  As compared to the previous radiograph, there is a small left pleural effusion.  No pneumothorax.\n"
            " Dr. ___ was paged at 9:00 AM on ___ by Dr. ___.\n"
        ),
        "there is a small left pleural effusion.",
    ),
    (
        (
            " WET READ: ___ 8:00 PM\n"
            " Small left effusion. No pneumothorax.\n"
            "______________________________________________________________________________\n"
            " FINAL REPORT\n"
            " CLINICAL HISTORY Cough.\n"
            " \n"
            " COMPARISON None.\n"
            " \n"
            " FINDINGS \n"
            " \n"
            " Small left effusion.  Clear right lung.\n"
            " \n"
            " IMPRESSION \n"
            " \n"
            " Small left effusion.\n"
            " \n"
            " Electronically Signed by ___, M.D."
        ),
        "Small left effusion.",
    ),
    (
        (
            " PORTABLE CHEST X-RAY\n"
            " \n"
            " HISTORY:  ___-year-old man, status post fall.\n"
            " \n"
            " TECHNIQUE: Single AP view.\n"
            " \n"
            " IMPRESSION:  AP chest compared to ___:\n"
            " \n"
            " Moderate right pneumothorax. No effusion.\n"
        ),
        "Moderate right pneumothorax.",
    ),
]


@pytest.mark.parametrize("report", NORMAL_REPORTS)
def test_normal_reports_in_their_frame(report):
    assert itemize_report(report).is_normal


@pytest.mark.parametrize(("report", "item"), REPORTS_WITH_A_FINDING)
def test_findings_in_their_frame(report, item):
    assert itemize_report(report).items == [item]


@pytest.mark.parametrize(
    ("table", "items"),
    [
        ("Effusion\tSmall left", ["Effusion: Small left"]),
        ("Effusion | Small left\nPneumothorax | None", ["Effusion: Small left"]),
        ("| Finding | Result |\n|---|---|\n| Effusion | Small left |\n| Nodule | absent |", ["Effusion: Small left"]),
        ("Pneumothorax\tNo\nEffusion\tYes", ["Effusion: Yes"]),
        ("Lungs | Left lower lobe nodule", ["Lungs: Left lower lobe nodule"]),
        ("Left effusion | Right nodule", ["Left effusion", "Right nodule"]),
        ("No pneumothorax\tLeft effusion", ["Left effusion"]),
    ],
)
def test_rows_of_two_cells_are_fields(table, items):
    result = itemize_report(table)
    assert result.items == items and not result.is_normal
    for item, span in zip(items, result.spans):
        assert re.findall(r"\w+", table[slice(*span)]) == re.findall(r"\w+", item)


@pytest.mark.parametrize("table", ["Pneumothorax | None", "Lungs\tClear\nHeart\tNormal", "Nodule\tabsent"])
def test_rows_that_deny_are_no_items(table):
    assert itemize_report(table).is_normal


@pytest.mark.parametrize("missing", ["NaN", "null", '"nan"', '"N/A"', '"Not given."', '""'])
def test_a_missing_part_of_a_report_is_left_out(tmp_path, missing):
    path = tmp_path / "reports.jsonl"
    rows = [f'"findings": {missing}, "impression": "Left effusion."', f'"findings": {missing}, "impression": {missing}']
    path.write_text("\n".join("{" + row + "}" for row in rows))
    assert [source.text for source in read_sources(path)] == ["Left effusion.", ""]
