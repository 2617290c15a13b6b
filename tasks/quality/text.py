r"""Rules on what the text itself holds, as regular expressions over every piece of text of a conversation.

Polars' regular expressions (Rust's) have no look-around, so that each is linear in the text. Most text
is plain ASCII, which the rules on other characters never read. Rules that code would set off
(placeholders, entities, calls) look a second time at what they found, with code taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.quality.calls import CALL_SIGN, CALL_TEXT
from tasks.quality.turns import Turns

CODE = r"(?s)```.*?(?:```|\z)|``[^`\n]+``|`[^`\n]*`|(?i:<(?:pre|code)>.*?</(?:pre|code)>)"
CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
# C1 controls, and non-characters that no encoder should have let through.
CONTROL_WIDE = r"[\u0080-\u009F\uFFFE\uFFFF]"

# UTF-8 read as Windows-1252: the continuation bytes 80 to BF come out as these.
_C = r"[\u0080-\u00BF€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
# Those among them that also stand after a word, so that a capital Ã or â before them proves nothing.
_C_STRICT = r"[\u0080-\u009F\u00A1-\u00A9\u00AC\u00AE-\u00B6\u00B8-\u00BA\u00BC-\u00BF€ƒ†‡ˆ‰Š‹ŒŽ•˜™šœžŸ]"
MOJIBAKE = "|".join(
    (
        rf"[ÂÃ]{_C_STRICT}",
        r"Ã[“”‘’–—…„‚\u00A0][a-zß-ÿ]",
        r"[a-z]Ã[“”‘’–—…„‚\u00A0 ]",
        r"Â[\u00A0·«»]",
        r"â€",
        r"â(?:„¢|[ˆ‰œš‡†ž™\u0080-\u009F])",
        r"ï¿½|ï»¿|ðŸ|ð\u009f",
        rf"(?:[à-ï]{_C}{{2}}){{2}}",  # Chinese, Japanese, Korean, Thai, ...
        rf"(?:[ÐÑ]{_C}){{3}}",  # Cyrillic, Greek and Arabic have their own lead bytes
        rf"(?:[ÎÏ]{_C}){{3}}",
        rf"(?:[ØÙ]{_C}){{3}}",
        # UTF-8 Cyrillic read as Windows-1251
        r"(?:[РС][ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—™љ›њќћџ\u00A0ЎўЈ¤Ґ¦§Ё©Є«¬\u00AD®Ї°±Ііґµ¶·ё№є»јЅѕї]){3}",
        # bytes read as GBK: the replacement character, uninitialised memory, Chinese punctuation
        r"锟斤拷|烫烫烫|屯屯屯|(?:锛|銆).{0,80}(?:锛|銆)",
    )
)

# Letters after which a joiner or a zero-width space has no work to do.
_PLAIN = r"[\x00-\x7F\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Greek}\u3000-\u303F]"
INVISIBLE = "|".join(
    (
        r"[\u2060-\u2064\uFEFF\u180E\u00AD\u115F\u1160\u3164]",
        r"(?:\A|[^\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}\p{Tibetan}])\u200B",
        rf"(?:\A|{_PLAIN})[\u200C\u200D]",
        # tag characters spell the flags of England, Scotland and Wales, and otherwise hidden text
        r"(?:\A|[^\x{1F3F4}\x{E0020}-\x{E007F}])[\x{E0001}-\x{E007F}]",
    )
)
RIGHT_TO_LEFT = r"[\p{Arabic}\p{Hebrew}\p{Syriac}\p{Thaana}\p{Nko}]"
BIDI_OVERRIDE = r"[\u202D\u202E]"
BIDI_MARK = r"[\u202A-\u202C\u2066-\u2069\u200E\u200F\u061C]"

PLACEHOLDER = "|".join(
    (
        # not LaTeX ({{a}^2}) nor nested braces: a name of three letters or more, alone, after no operator
        r"(?:\A|[^A-Za-z0-9\\^_{}$])\{\{ ?[A-Za-z][A-Za-z_. -]{1,40}[A-Za-z0-9] ?\}\}(?:\z|[^}])",
        # <<your answer>> is how a prompt says what an answer shall be wrapped in
        r"(?i:(?:\A|[^<])<(?:your|insert|enter|add|put|fill|replace)[ _-][a-z][a-z _-]{1,40}>)",
        r"(?i:<[a-z][a-z _-]{1,30}[ _-](?:goes[ _-])?here>)",
        r"(?i:\blorem ipsum dolor\b|\bTODO: (?:fill|write|add|answer)\b)",
        r"\$\{[a-z][A-Za-z_]{2,30}\}|%\([a-z_]{3,30}\)s",
        r"<(?:你的|您的|在此|请)[^<>\n]{1,20}>|【(?:请|在此)[^】\n]{0,20}(?:填写|输入|插入)[^】\n]{0,20}】",
    )
)
# In an answer only: a prompt may well show the form that it wants filled in. Before ( it is a link of Markdown.
FILL_IN = r"(?i:\[(?:insert|enter|fill in|add|put) [a-z][^\]\n]{1,60}\](?:\z|[^(]))"
# What every placeholder that does not begin with < or [ has in it.
_PLACEHOLDER_SIGN = r"\{\{|\$\{|%\(|orem ipsum|TODO|【"
_CANNOT = (
    r"(?:can(?:no|['’])t|can not|won['’]t|will not|must decline|do(?:n['’]t| not) have the (?:ability|capability)|"
    r"(?:['’]m |am |['’]re |are )?"
    r"(?:not able|unable|not capable|not comfortable|not programmed|not allowed|not permitted))"
)
_VERBS = (
    "assist|comply|fulfil?l|provide|do (?:that|this)|discuss|answer|engage|support|create|generate|write|continue|"
    "participate|share|respond|perform|offer|give|produce|process|browse|access|complete|execute|make"
)
_OPENING = (
    r"(?:(?:i['’]?m|i am|we['’]re) (?:really |very |so |truly |deeply )?sorry|sorry|(?:my |i )?apolog(?:ies|i[sz]e)|"
    r"unfortunately|as an ai[^.,\n]{0,40})"
)
REFUSAL = "|".join(
    (
        rf"(?i)\A\W{{0,3}}{_OPENING}[^.\n]{{0,60}}?\b(?:i|we) ?{_CANNOT}\b[^.\n]{{0,40}}?\b(?:help|{_VERBS})\b",
        rf"(?i)\A\W{{0,3}}(?:i|we) ?{_CANNOT} (?:to )?(?:\w+ly )?(?:help (?:you |with)|(?:{_VERBS})"
        r"[^.\n]{0,40}\b(?:request|that|this|content|harmful|illegal|information about))",
        r"\A\W{0,3}(?:非常|很)?(?:抱歉|对不起|不好意思)[，,。 ]{0,2}(?:但是?|作为[^，。]{0,12}[，,])?"
        r"(?:我|我们)?(?:目前|现在)?(?:无法|不能|没办法)",
    )
)
DISCLAIMERS = "(?i)" + "|".join(
    (
        "as an ai language model",
        "as an ai model,",
        "as an ai chatbot",
        "i'm just an ai",
        "i am just an ai",
        "i'm only an ai",
        "my knowledge cutoff",
        "my training data only goes",
        "作为一个ai语言模型",
        "作为ai语言模型",
        "作为一个人工智能",
        "作为人工智能语言模型",
        "作为一个语言模型",
        "作为一个大语言模型",
    )
)
# What every one of them has in it.
DISCLAIMER_SIGN = r"(?i)language model|ai model|ai chatbot|an ai\b|knowledge cutoff|training data only|作为"
# Saying what one is, is no disclaimer; saying that it stands in the way is.
DISCLAIMER = (
    r"(?i)\bas an? (?:large |ai )*language model,? i(?:['’]m| am| do| can| have|['’]ve| lack)?"
    r"(?:n['’]t|not| not| no| unable| only| lack)\b"
)
# Tokens of templates that begin and end turns, thoughts and calls in one model or another, and are text to the rest.
FOREIGN = r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
ENTITY = r"&(?:quot|amp|lt|gt|nbsp|apos|#0?39|#x27|#\d{2,5});"

# An answer that stops in the middle: its last line is prose, long, and ends on a letter or a joint.
OPEN_END = r"[\p{L}\p{M},，、;；(（\[{<=+&/—–-]\z"
_ABBREVIATION = r"\b(?:\p{L}\.)+\p{L}\z"
# What no sentence ends on, whether its writer cares for full stops or not: a joint, or a word that leads to another.
JOINT = (
    r"(?i)[,，、;；(（\[{<=+&/]\z|[的和与及在是把被从为以]\z|(?:\A|\s)(?:a|an|the|this|these|its|their|his|my|your|our|"
    r"and|or|but|nor|so|if|as|because|although|while|when|where|which|who|whose|that|than|then|"
    r"of|to|in|on|at|by|for|with|from|into|onto|about|between|during|through|without|within|under|"
    r"is|are|was|were|be|been|has|have|had|can|could|will|would|should|may|might|must|not|very|"
    r"und|oder|der|die|das|den|dem|ein|eine|mit|von|zu|für|et|ou|le|la|les|un|une|des|du|de|que|y|el|los|las|con|para)\z"
)
LIST_LINE = r"^\s*(?:[-*+•|#>]|\d{1,3}[.)]|\$|```| {4}|\t)"
_END, _LAST_LINES = 24, 1_000  # characters of an answer's end that tell how it ends, and of its last two lines
# Added tokens that are text like any other, or that other rules look for.
HARMLESS = re.compile(
    r"</?(?:think|table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|[abipus]|code|ul|ol|li|sup|sub|br)>|\W?\w?"
    r"|\u2581+"
)
# Shares of an answer at which the search for repetition first looks.
GLANCES = (0.5, 0.95)
LONG_LINE = r"(?:\S+\s+){6}\S"
LONG_CJK_LINE = r"(?:[\p{Han}\p{Hiragana}\p{Katakana}][^\p{Han}\p{Hiragana}\p{Katakana}]?){20}"


_ANSWERS = (pl.col("role") == "assistant") & (pl.col("part") == 0)


def text_flags(laid: Turns, special_tokens: Sequence[str]) -> dict[str, pl.Series]:
    """Flags of the rules that look at text. `special_tokens`: those that text must not hold."""
    pieces, angled = laid.pieces, laid.angled
    text = pl.col("text")
    wide = pieces.filter(text.str.len_bytes() != text.str.len_chars())
    answers = pieces.filter(_ANSWERS)
    talked_of = answers.filter(text.str.contains(DISCLAIMER_SIGN))
    rtl = laid.where(text.str.contains(RIGHT_TO_LEFT), wide)
    tokens = guarded(special_tokens)
    tools = laid.rows["tools"].fill_null("[]").str.strip_chars() != "[]"
    special = _holds(laid, tokens)
    bracketed = pieces.filter(text.str.contains("INST]", literal=True))
    # One sign of a single byte, sought with those of more, would double the time of the search.
    sign = text.str.contains("[", literal=True) | text.str.contains(_PLACEHOLDER_SIGN)
    signed = pieces.filter((pl.col("part") < 2) & sign)
    return {
        "special_token": special,
        "foreign_token": laid.where(pl.lit(True), _outside_code(pl.concat([angled, bracketed]), FOREIGN)) & ~special,
        "replacement_character": laid.where(text.str.contains("\ufffd", literal=True), wide),
        "mojibake": laid.where(text.str.contains(MOJIBAKE), wide),
        "control_character": laid.mark(pieces["n"].filter(_controls(pieces["text"])).unique())
        | laid.where(text.str.contains(CONTROL_WIDE), wide),
        "invisible_character": laid.where(text.str.contains(INVISIBLE), wide),
        "bidi_control": laid.where(text.str.contains(BIDI_OVERRIDE), wide)
        | (laid.where(text.str.contains(BIDI_MARK), wide) & ~rtl),
        "placeholder": laid.where(
            pl.lit(True),
            pl.concat(
                [
                    _outside_code(pl.concat([angled.filter(pl.col("part") < 2), signed]), PLACEHOLDER),
                    _outside_code(signed.filter(pl.col("role") == "assistant"), FILL_IN),
                ]
            ),
        ),
        "call_in_text": laid.where(
            pl.lit(True),
            _outside_code(
                pl.concat([among.filter(_ANSWERS) for among in (angled, pieces.filter(text.str.contains(CALL_SIGN)))]),
                CALL_TEXT,
            ),
        ),
        "html_entity": laid.where(
            pl.lit(True), _outside_code(answers.filter(text.str.contains("&", literal=True)), ENTITY)
        ),
        "refusal": laid.where(text.str.contains(REFUSAL), answers) & ~tools,
        "ai_disclaimer": laid.where(text.str.contains(DISCLAIMERS) | text.str.contains(DISCLAIMER), talked_of),
        "answer_is_question": _echoes(laid),
        "repetition": laid.where(pl.lit(True), _circling(answers)),
        "unclosed_code": laid.where(text.str.count_matches(r"(?m)^\s*```") % 2 == 1, answers),
    }


def guarded(special_tokens: Sequence[str]) -> list[str]:
    """The special tokens that may not occur in text.

    Thinking tags have rules of their own, and the white space and HTML tags that some tokenizers (Gemma's)
    add to their vocabulary are text like any other.
    """
    return sorted({token for token in special_tokens if token.strip() and not HARMLESS.fullmatch(token)})


def _holds(laid: Turns, tokens: Sequence[str]) -> pl.Series:
    """Which conversations hold one of the tokens, literally."""
    if not tokens:
        return laid.mark(pl.Series([], dtype=pl.UInt32))
    among = laid.angled if all("<" in token for token in tokens) else laid.pieces
    return laid.where(pl.col("text").str.contains("|".join(map(re.escape, tokens))), among)


_BLOCK = 1 << 16  # bytes looked at at once: what stays in a core's cache


def _controls(texts: pl.Series) -> pl.Series:
    """Which texts hold a control character below U+0080 other than line ends and tabs.

    Read from the bytes: array comparisons are several times faster than a regular expression here.
    """
    found = np.zeros(len(texts), np.bool_)
    if len(texts):
        column = texts.to_arrow().cast(pa.large_string())
        offsets = np.frombuffer(column.buffers()[1], np.int64)[: len(texts) + 1]
        data = np.frombuffer(column.buffers()[2], np.uint8)
        for first in range(int(offsets[0]), int(offsets[-1]), _BLOCK):
            block = data[first : min(first + _BLOCK, int(offsets[-1]))]
            there = ((block < 0x20) & (block != 0x0A)) | (block == 0x7F)
            if there.any():
                there &= (block != 0x09) & (block != 0x0D)
                found[np.searchsorted(offsets, np.flatnonzero(there) + first, side="right") - 1] = True
    return pl.Series(found)


def _outside_code(pieces: pl.DataFrame, pattern: str) -> pl.DataFrame:
    """The pieces that match outside code."""
    text = pl.col("text")
    found = pieces.filter(text.str.contains(pattern))
    return found.filter(text.str.replace_all(CODE, " ` ").str.contains(pattern))


def _echoes(laid: Turns) -> pl.Series:
    plain = pl.col("content").str.strip_chars().str.to_lowercase()
    same_length = pl.col("content").str.len_bytes() - pl.col("content").shift(1).str.len_bytes()
    pairs = laid.turns.select(
        "n",
        "content",
        before=pl.col("content").shift(1),
        near=(pl.col("letter") == "A")
        & (pl.col("letter").shift(1) == "U")
        & ~pl.col("first")
        & (same_length.cast(pl.Int64).abs() < 8),
    ).filter(pl.col("near"))
    before = pl.col("before").str.strip_chars().str.to_lowercase()
    # Short exchanges (Thanks! - Thanks!) are manners, not an echo.
    return laid.where((plain == before) & (plain.str.len_chars() >= 12), pairs)


def _circling(answers: pl.DataFrame) -> pl.DataFrame:
    """Long answers most of whose lines, sentences or words were said before in the same answer."""
    text = pl.col("text")
    bytes_ = text.str.len_bytes()
    long = answers.filter(bytes_ > 400)
    # Who goes round in circles has said before what he says now: two glances leave few answers to be taken apart.
    long = long.with_columns(chars=text.str.len_chars()).filter(pl.any_horizontal(map(_said_before, GLANCES)))
    words = pl.col("words")
    sentences = pl.col("sentences").list.len()
    # Rules, frames, indentation and columns of figures are said over and over by their nature: words are of letters.
    return (
        long.with_columns(
            words=text.str.to_lowercase().str.extract_all(r"\pL+"),
            sentences=text.str.extract_all(r"[^.!?。！？\n]{20,}[.!?。！？\n]").list.filter(
                pl.element().str.contains(r"\pL{2}")
            ),
        )
        .filter(
            ((words.list.len() > 60) & (words.list.n_unique() < 0.08 * words.list.len()))
            | ((sentences >= 8) & (pl.col("sentences").list.n_unique() < 0.34 * sentences))
        )
        .select("n", "text")
    )


def _said_before(share: float) -> pl.Expr:
    """Whether the few characters at this share of a text (of `chars` characters) stand in it before."""
    text, at = pl.col("text"), (pl.col("chars") * share).cast(pl.Int64)
    return text.str.slice(0, at).str.contains(text.str.slice(at, 12), literal=True)


def endings(laid: Turns) -> dict[str, pl.Series]:
    """How conversations end, for the rules that compare a row with its source.

    `open` and `closed`: on a line of prose that has no end, or has one (other answers are neither: a number, a list,
    a table or a name ends as it likes); `joint`: open, and on what no sentence ends on; `on_call`: on a call;
    `calls`: holds a call at all.
    """
    final = laid.turns.filter(pl.col("last") & (pl.col("letter") == "A"))
    text, line = pl.col("text"), pl.col("line")
    lines = (
        final.filter(pl.col("calls") == 0)
        .select("n", text=pl.col("content").str.strip_chars_end())
        .with_columns(end=text.str.tail(_END), lines=text.str.tail(_LAST_LINES).str.split("\n").list.tail(2))
        .with_columns(line=pl.col("lines").list.last(), before=pl.col("lines").list.first())
        .filter(~line.str.contains(LIST_LINE))
        .with_columns(long=line.str.contains(LONG_LINE), wide=line.str.len_bytes() > line.str.len_chars())
    )
    # Scripts that write no spaces are looked for only where there is more than ASCII.
    unspaced = lines.filter(~pl.col("long") & pl.col("wide")).filter(line.str.contains(LONG_CJK_LINE))
    prose = pl.concat([lines.filter("long"), unspaced])
    end = pl.col("end")
    hanging = end.str.contains(OPEN_END) & ~end.str.contains(_ABBREVIATION)
    left_open = prose.filter(hanging).with_columns(joint=end.str.contains(JOINT))
    # A title has capitals, and a verse stands below another one.
    words, capitals = (line.str.count_matches(rf"(?:\A|\s){sort}") for sort in (r"\pL", r"\p{Lu}"))
    verse = (line.str.len_chars() < 60) & (pl.col("lines").list.len() > 1) & pl.col("before").str.contains(OPEN_END)
    left_open = left_open.filter(pl.col("joint") | ~(verse | (capitals > 0.6 * words)))
    return {
        "open": laid.mark(left_open["n"]),
        "joint": laid.where(pl.col("joint"), left_open),
        "closed": laid.where(~hanging, prose),
        "on_call": laid.where(pl.col("calls") > 0, final),
        "calls": laid.mark(laid.calls["n"].unique()),
    }
