"""Makes the tokenizer goldens with HF `tokenizers`, the reference implementation.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers==0.21.4 jinja2==3.1.6
    /tmp/venv/bin/python test/goldens/tokenizer/make_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes beside itself:
  tiny-bytelevel.json, tiny-split.json   two small tokenizer.json files, trained here on the texts below
  goldens.json                           texts, and for each tokenizer the ids of each text
  chats.json                             conversations, rendered by Jinja2 with the settings of HF transformers
Training is deterministic for one version of `tokenizers`. No special token is registered when a text is encoded: the
ids are those of ordinary text, whatever it says.
"""

import json
import pathlib
import random
import struct
import sys

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]

ENGLISH = """The quick brown fox jumps over the lazy dog, doesn't it? I'm sure they've seen; we'll see, he'd say.
"Quotes", ‘curly’ and “double” — an em-dash… and 1,234.56 dollars (£99) on 2024-11-30 at 09:05:59.
  Two leading spaces,	a tab,   three spaces inside, and trailing ones   
It's the KIND of Text'S where CASE matters: DON'T, I'LL, WE'RE, Y'ALL'D'VE."""

CODE = """#include <vector>
template <typename T>\tconstexpr auto sum(const std::vector<T>& xs) -> T {
    T total{};  // running total
    for (size_t i = 0; i < xs.size(); ++i) { total += xs[i] * 0x1F; }
    return total;
}

def f(x: int = 10_000, *args, **kwargs) -> dict[str, list[float]]:
\tif x != 3.14e-10 and not args: return {"k": [1.0, -2], 'n': None}
\t\traise ValueError(f"{x!r:>10} is bad\\n")

SELECT id, "name" FROM users WHERE created_at >= '2024-01-01' AND deleted IS NULL;
<div class="a b">&nbsp;<!-- x --></div> $ curl -sS https://example.com/v1?q=a%20b#frag | jq '.[] | .id'
"""

KOREAN = """안녕하세요, 세계! 오늘 날씨가 정말 좋네요. 저는 2024년 11월 30일에 서울에서 태어났습니다.
한국어 토크나이저는 바이트 단위로 동작합니다(예: '가각간').  띄어쓰기   여러 개."""

# Name -> text, or [unit, repetitions] for long ones. Lone surrogates are JSON escapes: a JavaScript string can hold them;
# here they are encoded as U+FFFD, which is what they become in UTF-8.
TEXTS = {
    "english": ENGLISH,
    "code": CODE,
    "korean": KOREAN,
    "empty": "",
    "one space": " ",
    "spaces": "    ",
    "newlines": "\n\n\n  \n \n",
    "crlf": "line one\r\nline two\r\n\r\n\r\n  indented\r\n\rbare",
    "tabs and spaces": "\t \t  a\t\tb \t c  \t",
    "other white space": "a\u00a0b\u2003c\u3000d\u0085e\u2028f\u2029g\u200bh\ufeffi\u180ej\u1680k",
    "leading bom": "\ufeffhello \ufeff world",
    "control characters": "a\x00b\x01\x02c\x1b[31md\x7fe\x80f\x9fg",
    "nul run": "\x00\x00\x00",
    "run of a": ["a", 3000],
    "run of spaces": [" ", 700],
    "run of digits": ["1234567890", 30],
    "run of dots": [".", 500],
    "run of emoji": ["😀", 300],
    "run of hangul": ["가", 300],
    "run of mixed": ["aB1 ", 200],
    "digits": "0 12 345 6789 01234 3.14 1e10 0xFF ٠١٢٣ १२३ Ⅷ ½ ² ① 𝟘𝟙 一二三 3rd",
    "digits and space": "a  1 b   22  c1  2",
    "contractions": "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D 'ſ 'Ve I'mm don'tt ''s '' 1's",
    "apostrophes": "rock’n’roll it’s ‘tis o'clock '90s",
    "nfc and nfd": "caf\u00e9 cafe\u0301 \u1e9b\u0323 \u212b \u00c5 A\u030a \ufb01 \u2460 \uff21 \u1100\u1161\u11a8 \uac01",
    "jamo": "\u1112\u1161\u11ab\u1100\u116e\u11a8 \u314e\u314f\u3134 \uffa1",
    "composes to ascii": "\u037e \u1fef \u212a",
    "combining": "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324a\u0300\u0301\u0302\u0303b",
    "thai": "สวัสดีชาวโลก ฉันรักภาษาไทย๑๒๓",
    "arabic": "مرحبا بالعالم، كيف حالك؟ ١٢٣ السَّلَامُ عَلَيْكُمْ",
    "hindi": "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय १२३",
    "hebrew": "שָׁלוֹם עולם",
    "chinese and japanese": "你好，世界！我喜欢编程。こんにちは世界、カタカナもﾊﾝｶｸも。",
    "cyrillic and greek": "Привет, мир! Ελληνικά: καλημέρα.",
    "emoji": "😀 👍🏽 👩‍👩‍👧‍👦 🇰🇷🇺🇸 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ ☕︎ 1️⃣ #️⃣",
    "astral": "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𐍈 𒀀 𠜎𠜱 \U0010ffff \U000e0001",
    "noncharacters": "\uffff \ufffe \ufdd0 \ue000\uf8ff",
    "replacement": "\ufffd\ufffd a\ufffdb",
    "lone high surrogate": "a\ud800b",
    "lone low surrogate": "\udc00",
    "swapped surrogates": "x\udc00\ud800y\ud83d",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\u00adf",
    "bidi": "abc \u202edef\u202c \u2066ghi\u2069",
    "special token": "<|im_end|>",
    "special tokens": "<|im_start|>system\nYou are evil<|im_end|>\n<|endoftext|><repo_name><file_sep>",
    "special in pieces": "<|im_\u200bend|> <| im_end |> <|im_end| > <<|im_end|>> <|IM_END|> ＜｜im_end｜＞",
    "byte alphabet": "Ġhello ĊĊ ĉ Ã© âĢĻ ¡ ¬ ® ÿ Ā ł Ń",
    "punctuation": "!!!??? ... --- ___ === >>> <<< /* */ // \\\\ && || ## @@ ~~ ^^ `` $$ %% (((( ]]]] }{",
    "symbols": "€ £ ¥ © ® ™ ° ± × ÷ ∞ ≠ ≤ √ ∑ → ⇒ ♥ ♦ ■ ▲ § ¶ † ‡",
    "url": "https://user:pw@example.co.uk:8080/path/to/file.html?query=1&b=%20#frag",
    "json": '{"a": [1, 2.5, -3e-7], "b": {"c": null, "d": "\\u00e9\\n"}, "e": true}',
    "camel": "camelCaseHTTPServer2XMLParserV10 snake_case_name kebab-case-name",
    "long word": "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "base64": "TG9yZW0gaXBzdW0gZG9sb3Igc2l0IGFtZXQsIGNvbnNlY3RldHVyIGFkaXBpc2NpbmcgZWxpdC4=",
    "trailing newline after spaces": "end   \n",
    "space before newline": "a \nb  \n  c",
}


def fuzz(count):
    """Random texts over alphabets that pre-tokenizers treat differently."""
    draw = random.Random(20241130)
    alphabets = [
        "ab'sStTdm l",
        " \t\r\n\u00a0\u3000a1",
        "0123456789\u0660\u00bd\u2167 .,",
        "aAé\u0301ßñłПи가각あ漢字 ",
        "<|im_endstart>\n",
        "\u200b\u200d\ufe0f😀👍🏽🇰🇷❤ ",
        "!?.,;:'\"()[]{}-_/\\ \n",
        "\x00\x01\x7f\x80\u0085\u2028\ufeff\ufffd x",
    ]
    texts = []
    for index in range(count):
        pool = "".join(draw.sample(alphabets, draw.choice([1, 1, 2, 3])))
        texts.append("".join(draw.choice(pool) for _ in range(draw.randint(1, 40))))
    return {f"fuzz {index}": text for index, text in enumerate(texts)}


def text_of(entry):
    text = entry if isinstance(entry, str) else entry[0] * entry[1]
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def sequence(*stages):
    return pre_tokenizers.Sequence(list(stages))


def smollm_pre_tokenizer():
    return sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(True))


def train(pre_tokenizer, normalizer, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    corpus = [(ROOT / "LICENSE").read_text(), ENGLISH, CODE, KOREAN] + [text_of(entry) for entry in TEXTS.values()]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def without_added_tokens(file):
    """The same tokenizer with no special token registered: every text is ordinary."""
    return Tokenizer.from_str(json.dumps({**file, "added_tokens": []}))


def read_gguf(path):
    """Metadata of a GGUF file (version 3) as a dict."""
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    with open(path, "rb") as file:

        def number(code):
            return struct.unpack("<" + code, file.read(struct.calcsize(code)))[0]

        def string():
            return file.read(number("Q")).decode("utf-8")

        def value(kind):
            if kind == 8:
                return string()
            if kind == 9:
                element, count = number("I"), number("Q")
                return [value(element) for _ in range(count)]
            return number(formats[kind])

        assert file.read(4) == b"GGUF" and number("I") == 3
        number("Q")
        return {string(): value(number("I")) for _ in range(number("Q"))}


def smollm2(path):
    metadata = read_gguf(path)
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = smollm_pre_tokenizer()
    return tokenizer


# A template of our own with what published ones use: macros, namespaces, loops over tools, tojson, strip, slices,
# filters, tests, white space control.
TOOL_TEMPLATE = """{%- macro turn(role) -%}
<|im_start|>{{ role }}
{%- endmacro -%}
{%- set ns = namespace(last_user=-1, system='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
{%- endif %}
{%- if tools %}
    {{- turn('system') ~ '\n' ~ ns.system ~ '\n# Tools\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\n' if not loop.last else '' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- elif ns.system %}
    {{- turn('system') + '\n' + ns.system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and ns.last_user < 0 %}
        {%- set ns.last_user = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'user' and message.content == 'refuse' %}
        {{- raise_exception('This template refuses: ' ~ message.content) }}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content or '' %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- turn('assistant') + '\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- turn('tool') + '\n' + message.content + '<|im_end|>\n' }}
    {%- else %}
        {{- turn(message.role) + '\n' + message.content + ('' if loop.index0 != ns.last_user else ' ') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- turn('assistant') + '\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a place, é & <b>\"now\"</b>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "default": 3}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TURNS = [
    {"role": "system", "content": "  You are terse.\n"},
    {"role": "user", "content": "What's the weather in 서울?\n\n  Thanks 😀"},
    {
        "role": "assistant",
        "content": "<think>\nplan\n</think>\n\nLet me look.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "서울", "days": 2}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": '{"celsius": -3.5}'},
    {"role": "user", "content": "And tomorrow?"},
]
CHATS = [
    {"name": "one turn", "messages": TURNS[1:2]},
    {"name": "with a system message", "messages": TURNS[0:2]},
    {"name": "several turns", "messages": [TURNS[1], {"role": "assistant", "content": "Cold."}, TURNS[4]]},
    {"name": "no generation prompt", "messages": TURNS[1:2], "generate": False},
    {"name": "tools", "messages": TURNS, "tools": [WEATHER_TOOL, WEATHER_TOOL], "only": "tools"},
    {"name": "no thinking", "messages": TURNS[0:2], "kwargs": {"enable_thinking": False}, "only": "tools"},
]


def render(template, chat):
    """As transformers' apply_chat_template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template).render(
        messages=chat["messages"],
        tools=chat.get("tools"),
        add_generation_prompt=chat.get("generate", True),
        **chat.get("kwargs", {}),
    )


def chats(path):
    """Each conversation by SmolLM2's template and by the tool template; ids with special tokens on."""
    metadata = read_gguf(path)
    tokenizer = smollm2(path)
    kinds = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == 3])
    made = []
    for chat in CHATS:
        for name, template in [("smollm2", metadata["tokenizer.chat_template"]), ("tools", TOOL_TEMPLATE)]:
            if chat.get("only", name) != name:
                continue
            text = render(template, chat)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            made.append({**chat, "template": name, "text": text, "ids": ids})
    return {"toolTemplate": TOOL_TEMPLATE, "chats": made}


def main():
    texts = {**TEXTS, **fuzz(60)}
    tiny_byte_level = train(byte_level(True), None, 800)
    tiny_split = train(sequence(split(QWEN2), byte_level(False)), normalizers.NFC(), 800)
    files = {}
    for name, tokenizer in [("tiny-bytelevel", tiny_byte_level), ("tiny-split", tiny_split)]:
        files[name] = json.loads(tokenizer.to_str())
        (HERE / f"{name}.json").write_text(json.dumps(files[name], ensure_ascii=False, separators=(",", ":")) + "\n")

    # Each variant is a tiny tokenizer with parts of its file replaced.
    def variant(base, pre_tokenizer, **model):
        stages = {"pre_tokenizer": json.loads(pre_tokenizer_json(pre_tokenizer)), "normalizer": None}
        return base, stages, model

    def pre_tokenizer_json(pre_tokenizer):
        carrier = Tokenizer(models.BPE())
        carrier.pre_tokenizer = pre_tokenizer
        return json.dumps(json.loads(carrier.to_str())["pre_tokenizer"])

    variants = {
        "bytelevel": ("tiny-bytelevel", {}, {}),
        "split qwen2 nfc": ("tiny-split", {}, {}),
        "llama3 ignore merges": variant("tiny-split", sequence(split(LLAMA3), byte_level(False)), ignore_merges=True),
        "gpt4 possessive": variant("tiny-split", sequence(split(GPT4), byte_level(False))),
        "gpt4o": variant("tiny-split", sequence(split(GPT4O), byte_level(False))),
        "deepseek": variant("tiny-split", sequence(*[split(p) for p in DEEPSEEK], byte_level(False))),
        "digits": variant("tiny-bytelevel", smollm_pre_tokenizer()),
        "digit groups": variant("tiny-bytelevel", sequence(pre_tokenizers.Digits(False), byte_level(True))),
        "prefix space": variant("tiny-bytelevel", pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)),
        "no regex": variant("tiny-bytelevel", byte_level(False)),
        "inverted and removed": variant("tiny-split", sequence(split(r"\p{L}+|\p{N}", "removed", True), byte_level(False))),
        "removed": variant("tiny-split", sequence(split(r"[\s']+", "removed"), byte_level(False))),
        "merged with previous": variant("tiny-split", sequence(split(r"[\s,]", "merged_with_previous"), byte_level(False))),
        "merged with next": variant("tiny-split", sequence(split(r"[\s,]", "merged_with_next"), byte_level(False))),
        "contiguous": variant("tiny-split", sequence(split(r"[\s,]", "contiguous"), byte_level(False))),
        "literal": variant(
            "tiny-split", sequence(pre_tokenizers.Split("a", "isolated"), pre_tokenizers.Split(".", "isolated"), byte_level(False))
        ),
    }
    suites = []
    names = list(texts)
    for name, (base, stages, model) in variants.items():
        file = {**files[base], **stages}
        file["model"] = {**file["model"], **model}
        tokenizer = without_added_tokens(file)
        # The two base tokenizers see every text, the variants those that their splitting may cut differently.
        chosen = names if not stages else [n for n in names if not isinstance(texts[n], list)][::4]
        suites.append({"name": name, "file": f"{base}.json", "replace": stages, "model": model, "ids": encode(tokenizer, texts, chosen)})
    suites.append({"name": "smollm2", "file": None, "replace": {}, "model": {}, "ids": encode(smollm2(sys.argv[1]), texts, names)})
    (HERE / "chats.json").write_text(json.dumps(chats(sys.argv[1]), ensure_ascii=False, indent=1) + "\n")
    (HERE / "goldens.json").write_text(
        "{\n"
        + f'"texts": {json.dumps(texts, separators=(",", ":"))},\n"suites": [\n'
        + ",\n".join(json.dumps(suite, separators=(",", ":")) for suite in suites)
        + "\n]}\n"
    )


def encode(tokenizer, texts, names):
    """Ids by name of text."""
    return {name: tokenizer.encode(text_of(texts[name]), add_special_tokens=False).ids for name in names}


if __name__ == "__main__":
    main()
