"""What exports leave in a report (line ends of all kinds, HTML, entities, escapes, RTF) -> plain text, with places."""

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_LINE_END = r"\r\r\n|\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029¶↵⏎␤]"
_ESCAPED_LINE_END = (
    r"(?:_x000[dD]_|_x000[aA]_)+\r?\n?|\\{1,2}r\\{1,2}n|\\{1,2}n|\\{1,2}r(?![a-z])|\\(?:par|pard|line)(?![a-z])\ ?"
    r"|\\\.(?:br|sp|ce)\\|\\[xX](?:0[dD]|0[aA])+\\?|(?:%0[dD])?%0[aA]|%0[dD]|\^M(?![a-z])"
)
_ESCAPED_TAB = r"_x0009_|\\t(?![a-z])|\\X09\\"
_BLOCKS = (
    "p|br|div|li|ul|ol|dl|dt|dd|tr|table|thead|tbody|tfoot|caption|h[1-6]|hr|section|article|header|footer|main|body|html|head|title"
    "|pre|blockquote|center|address|form|fieldset|cr|lf|crlf|nl|paragraph|item|list|text|content|component|para"
)
_INLINE = (
    "b|i|u|em|strong|span|font|a|sub|sup|small|big|s|strike|del|ins|mark|code|tt|label|input|img"
    "|wbr|o:p|st1:\\w+|abbr|cite|q"
)
_ATTRIBUTES = r"(?:\s[^<>]{0,500})?/?"
_PLAIN = re.compile(
    rf"(?P<drop><!--.*?-->|<(script|style)\b[^<>]*>.*?</\2\s*>|<![a-z\[][^<>]*>|<\?[^<>]*\?>|\]\]>|[\ufeff\u200b-\u200f\u2060\xad])"
    rf"|(?P<line>{_LINE_END}|{_ESCAPED_LINE_END})"
    rf"|(?P<tab>{_ESCAPED_TAB}|</?t[dh]{_ATTRIBUTES}>)"
    rf"|(?P<label><\w+\s[^<>]*\blabel\s*=\s*[\"'](?P<name>[^\"'<>]+)[\"'][^<>]*>)"
    rf"|(?P<heading><(?P<tag>findings?|impressions?|conclusions?|indications?|history|comparisons?|techniques?|examination)\s*>)"
    rf"|(?P<block></?(?:{_BLOCKS}|(?<=/)\w+){_ATTRIBUTES}>)"
    rf"|(?P<inline></?(?:{_INLINE}){_ATTRIBUTES}>)"
    r"|(?P<entity>&(?:\#\d{1,7}|\#[xX][\da-fA-F]{1,6}|[A-Za-z]\w{1,30});|&(?:nbsp|lt|gt|amp|quot)(?![A-Za-z;]))"
    r"|(?P<unicode>\\u[\da-fA-F]{4})"
    r"|(?P<space>[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000])|(?P<colon>：)",
    re.IGNORECASE | re.DOTALL,
)
_RTF = re.compile(
    r"(?P<drop>\{\\(?:\*\\\w+|fonttbl|colortbl|stylesheet|info|pict|header\w?|footer\w?)(?![a-z])(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|[\r\n]+)"
    r"|(?P<line>\\(?:par|line|sect|page|row)(?![a-z])-?\d*\ ?)"
    r"|(?P<tab>\\(?:tab|cell)(?![a-z])\ ?)"
    r"|\\'(?P<byte>[\da-fA-F]{2})|\\u(?P<code>-?\d{1,5})\ ?\??|\\(?P<literal>[{}\\])"
    r"|(?P<quote>\\[lr]quote(?![a-z])\ ?)|(?P<bullet>\\bullet(?![a-z])\ ?)|(?P<space>\\~)|(?P<control>\\[a-z*]+-?\d*\ ?|[{}])"
)
_ROUNDS = 3  # "&amp;lt;br&amp;gt;" takes three


@dataclass(frozen=True)
class PlainText:
    """
    Args:
        text: lines end with a line feed; no markup.
        places: (start, end) of each character in the text as it was given; None where the two are the same.
    """

    text: str
    places: list[tuple[int, int]] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where text[start:end] stands in the text as it was given."""
        return (start, end) if self.places is None else (self.places[start][0], self.places[end - 1][1])


def plain_text(report: str) -> PlainText:
    """The report without markup. Line ends, HTML blocks, escapes of line ends and RTF paragraphs become line feeds."""
    plain = PlainText(report)
    if re.match(r"\s*\{\\rtf", report):
        plain = _replaced(plain, _RTF, _rtf)
    for _ in range(_ROUNDS):
        after = _replaced(plain, _PLAIN, _markup)
        if after.text == plain.text:
            break
        plain = after
    return plain


def _markup(found: re.Match) -> str:
    kind = found.lastgroup if found.lastgroup not in ("name", "tag") else None
    if found["label"]:
        return f"\n{found['name']}:\n"
    if found["heading"]:
        return f"\n{found['tag']}:\n"
    if kind == "entity":
        return html.unescape(found[0])
    if kind == "unicode":
        return chr(int(found[0][2:], 16))
    return {"line": "\n", "block": "\n", "tab": "\t", "space": " ", "colon": ":"}.get(kind or "", "")


def _rtf(found: re.Match) -> str:
    if found["byte"]:
        return bytes.fromhex(found["byte"]).decode("cp1252", "replace")
    if found["code"]:
        return chr(int(found["code"]) % 0x10000)
    if found["literal"]:
        return found["literal"]
    return {"line": "\n", "tab": "\t", "quote": "'", "bullet": "•", "space": " "}.get(found.lastgroup or "", "")


def replace(plain: PlainText, parts: Iterable[tuple[int, int, str]]) -> PlainText:
    """The text with other words at some places, given in order as (start, end, words)."""
    texts: list[str] = []
    places: list[tuple[int, int]] = []
    last = 0
    for start, end, new in parts:
        texts += [plain.text[last:start], new]
        places += [plain.span(i, i + 1) for i in range(last, start)]
        places += [plain.span(start, end)] * len(new)
        last = end
    if not texts:
        return plain
    texts.append(plain.text[last:])
    places += [plain.span(i, i + 1) for i in range(last, len(plain.text))]
    return PlainText("".join(texts), places)


def _replaced(plain: PlainText, pattern: re.Pattern, words: Callable[[re.Match], str]) -> PlainText:
    parts = ((*found.span(), words(found)) for found in pattern.finditer(plain.text))
    return replace(plain, [part for part in parts if part[2] != plain.text[part[0] : part[1]]])
