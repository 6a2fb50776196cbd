"""Reports as exports write them: line ends, markup, lists, fields, denials behind the finding, and the frame of a report."""

import pytest

from itemized_clip_hf.data.itemize import itemize_report


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
