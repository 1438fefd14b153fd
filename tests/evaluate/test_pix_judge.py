"""The judge: asked only if an answer chooses no option, with verdicts in a file; over HTTP and as a local model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import REPOSITORY
from PIL import Image

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import write_json_lines
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.benchmark import Options
from pixel_sail.evaluate.pixfoundation import judge
from pixel_sail.evaluate.pixfoundation.judge import Judge, JudgeError, endpoint, local_model

QUESTION, OPTIONS = "Are the wings open or closed?", ("Open", "Closed")
ANSWERS = ["Open (a)", "They are spread.", "(a)", "I see a butterfly."]  # right: a, b, a, b


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pairs of PixMMVP and a file of answers: two of them in free words."""
    folder = tmp_path / "pixmmvp"
    (folder / "MMVP Images").mkdir(parents=True)
    rows = [f"{i},{QUESTION},(a) Open (b) Closed,({'ba'[i % 2]})" for i in range(1, 5)]
    (folder / "Questions.csv").write_text("Index,Question,Options,Correct Answer\n" + "\n".join(rows) + "\n")
    (folder / "Objects.csv").write_text("Index, Object\n" + "".join(f"{i}, the wings\n" for i in range(1, 5)))
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in range(1, 5)]
    (folder / "Segmentations.json").write_text(json.dumps({"images": images, "annotations": []}))
    for i in range(1, 5):
        Image.new("RGB", (8, 8)).save(folder / f"MMVP Images/{i}.jpg")
    lines = [{"index": i, "answers": [text], "segmentations": []} for i, text in enumerate(ANSWERS, start=1)]
    write_json_lines(tmp_path / "mine.jsonl", lines)
    return tmp_path


class Server(HTTPServer):
    """Answers chat completions with `replies` in turn (a number: that HTTP error) and records the requests."""

    replies: list  # also functions of the handler
    requests: list[tuple[str, str | None, dict]]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        server: Server

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, self.headers.get("Authorization"), body))
            reply = self.server.replies.pop(0)
            if callable(reply):
                return reply(self)
            content = (
                b"{}" if isinstance(reply, int) else json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            )
            self.send_response(reply if isinstance(reply, int) else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as running:
        running.replies, running.requests = [], []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def test_only_undecided_answers_are_asked_and_only_once(root: Path) -> None:
    prompts: list[str] = []

    def reply(prompt: str) -> str:
        prompts.append(prompt)
        return "(b)" if "spread" in prompt else "(none)"

    alone = runner.score_file(root / "mine.jsonl", "pixmmvp", root)
    assert (alone["accuracy"], alone["accuracy_single"], alone["undecided"], alone["judged"]) == (0, 50, 2, 0)
    assert alone["wordings"]["vqa"][0]["undecided"] == [{"index": i, "answer": ANSWERS[i - 1]} for i in (2, 4)]
    for _ in range(2):
        asked = Judge("fake", reply, root / "verdicts.jsonl")
        judged = runner.score_file(root / "mine.jsonl", "pixmmvp", root, options=Options(judge=asked))
        assert (judged["accuracy"], judged["accuracy_single"], judged["undecided"], judged["judged"]) == (50, 75, 1, 1)
    assert len(prompts) == 2 and all(part in prompts[0] for part in (QUESTION, "(a) Open (b) Closed", ANSWERS[1]))
    lines = [json.loads(row) for row in (root / "verdicts.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["b", "none"]
    assert lines[0] == {"judge": "fake", "prompt": prompts[0], "reply": "(b)", "verdict": "b"}
    other = Judge("another", reply, root / "verdicts.jsonl")
    assert other.verdict(QUESTION, OPTIONS, ANSWERS[1]) == "b" and len(prompts) == 3, (
        "a judge does not use the verdicts of another one"
    )


def test_a_torn_verdict_is_asked_again_and_nonsense_refused(root: Path) -> None:
    file = root / "verdicts.jsonl"
    Judge("fake", lambda _: "(a)", file).verdict(QUESTION, OPTIONS, "spread")
    whole = file.read_text()
    file.write_text(whole + whole[: len(whole) // 2])
    again = Judge("fake", lambda _: "(b)", file)
    assert again.verdict(QUESTION, OPTIONS, "spread") == "a" and again.verdict(QUESTION, OPTIONS, "folded") == "b"
    assert [json.loads(row)["verdict"] for row in file.read_text().splitlines()] == ["a", "b"]
    file.write_text("hello\n")
    with pytest.raises(DatasetError, match="line 1: 'hello' is no verdict"):
        Judge("fake", lambda _: "(b)", file)


def test_an_endpoint_is_asked_and_retried(server: Server) -> None:
    reply = endpoint(url_of(server), "grader", "secret", wait_s=0.01)
    server.replies = [429, 503, "(b)"]
    assert reply("Which one?") == "(b)"
    path, key, body = server.requests[-1]
    assert (path, key, len(server.requests)) == ("/v1/chat/completions", "Bearer secret", 3)
    assert body == {"model": "grader", "messages": [{"role": "user", "content": "Which one?"}], "temperature": 0}
    server.replies = [401]
    with pytest.raises(JudgeError, match="failed after 1 tries: HTTP 401"):
        reply("Which one?")
    server.replies = [500] * 4
    with pytest.raises(JudgeError, match="failed after 4 tries: HTTP 500"):
        reply("Which one?")
    server.shutdown()
    server.server_close()
    with pytest.raises(JudgeError, match="failed after 4 tries: .*refused"):
        reply("Which one?")


def tool(root: Path, *options: str, key: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools/test.py"), "--benchmark", "pixmmvp", "--data-root", str(root)]
    command += ["--predictions", str(root / "mine.jsonl"), "--out", str(root / "out"), *options]
    environment = os.environ | {"JUDGE_KEY": key, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)


def test_the_tool_with_an_endpoint(root: Path, server: Server) -> None:
    options = ("--judge-url", url_of(server), "--judge-model", "grader", "--judge-key-env", "JUDGE_KEY")
    server.replies = ["(b)", "it is neither"]
    done = tool(root, *options, key="k1")
    assert done.returncode == 0, done.stderr
    assert [key for _, key, _ in server.requests] == ["Bearer k1"] * 2
    assert "1 answers choose no option; they count as wrong" in done.stdout
    metrics = json.loads((root / "out/metrics.json").read_text())["benchmarks"]["pixmmvp"]
    assert (metrics["accuracy"], metrics["judged"], metrics["undecided"]) == (50, 1, 1)
    assert metrics["wordings"]["vqa"][0]["undecided"] == [{"index": 4, "answer": ANSWERS[3]}]
    assert "k1" not in (root / "mine.verdicts.jsonl").read_text()
    (root / "mine.verdicts.jsonl").unlink()
    server.replies = [401]
    refused = tool(root, *options, key="k1")
    assert refused.returncode == 1 and "error: the judge grader at" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_local_model_is_asked(tmp_path: Path) -> None:
    """A tiny language model: its reply is that of greedy generation."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "user", "it", "is", "open", "closed", "(", ")", "a", "b"]
    tokens = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokens.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # the template has it too
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}<s> user {{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    # large weights: the reply depends on every token of the prompt
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=2,
        initializer_range=1.0,
    )
    model = LlamaForCausalLM(config).eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    reply = local_model(tmp_path / "model", "cpu")("it is open")
    ids = torch.tensor([[1, 3, 4, 5, 6]])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert reply == tokenizer.decode(expected[0, 5:], skip_special_tokens=True) and reply
    with pytest.raises(JudgeError, match="no folder .*nowhere"):
        local_model(tmp_path / "nowhere", "cpu")("x")


KEY = "sk-secret-key"


def send(body: bytes, status: int = 200, **headers: str):
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body)

    return reply


def refused(server: Server, reply: object) -> str:
    server.replies = [reply] * 4
    with pytest.raises(JudgeError) as error:
        endpoint(url_of(server), "grader", KEY, wait_s=0.001)("x")
    assert KEY not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def test_the_key_does_not_follow_a_redirect(server: Server) -> None:
    for status in (301, 302, 303, 307, 308):
        message = refused(server, send(b"", status, Location=f"{url_of(server).replace('127.0.0.1', 'localhost')}/x"))
        assert "is not followed" in message and "localhost" in message
    assert {path for path, _, _ in server.requests} == {"/v1/chat/completions"} and len(server.requests) == 5


def test_the_key_is_in_no_message(server: Server) -> None:
    endpoint_of_key = endpoint(url_of(server), "grader", f" {KEY}\n")  # as `cat key` into a variable leaves it
    server.replies = ["(b)"]
    assert endpoint_of_key("x") == "(b)" and server.requests[-1][1] == f"Bearer {KEY}"
    assert "..." in refused(server, send(b"", 302, Location=f"https://other/?{KEY}"))
    for key in ("sk-a\nX: b", "sk-\u00e4", "sk a"):
        with pytest.raises(JudgeError, match="key of the judge has characters") as error:
            endpoint(url_of(server), "grader", key)
        assert key not in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/v1", "has no TLS"),
        ("https://user:word@example.org/v1", "a password in it"),
        ("file:///etc/passwd", "is no address as https"),
        ("example.org", "is no address as https"),
        ("https://exa mple.org", "is no address as https"),
        ("https://host:port/v1", "is no address: "),
        ("https://[host/v1", "is no address: "),
    ],
)
def test_addresses_that_are_not_asked(url: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        endpoint(url, "grader", KEY)


def test_replies_that_are_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"[" * 100_000, b"{}", b"null", b"\xff", b'{"choices": {"0": 1}}', b"<html>"):
        assert "is no chat completion" in refused(server, send(body))
    assert "more than 4,194,304 bytes" in refused(server, send(b"x" * (5 * 2**20)))
    monkeypatch.setattr(judge, "_TIMEOUT_S", 0.3)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        send(b"")(handler)
        with contextlib.suppress(OSError):
            for _ in range(8):
                handler.wfile.write(b"x")
                time.sleep(0.1)

    assert "did not end within 0.3 seconds" in refused(server, drip)


def test_damaged_verdicts_are_named(tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    for row in (b"[" * 100_000, b"null", b"\xff\xfe", b'{"judge": 1, "prompt": "", "reply": "", "verdict": ""}'):
        file.write_bytes(row + b"\n")
        with pytest.raises(DatasetError, match="line 1: .* is no verdict; move the file away"):
            Judge("fake", lambda _: "", file)
