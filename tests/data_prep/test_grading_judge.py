import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.grading import JudgeGrader, grade_rows
from reasonforge.errors import RequestError, StageError

REPLIES = {
    "alpha": "VERDICT: CORRECT",
    "beta": "They differ.\n**Verdict: wrong**",
    "gamma": "<think>VERDICT: CORRECT</think>\nVERDICT: INCORRECT",
    "vague": "It is correct, I think.",
    "both": "VERDICT: CORRECT\nVERDICT: WRONG",
    "late": "hm",
}


class Endpoint:
    """An OpenAI-compatible server that answers by the word in the <answer>, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.status: list[int] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.requests.append(body)
                status = endpoint.status.pop() if endpoint.status else 200
                answer = json.dumps(endpoint.reply(body) if status == 200 else {"error": {"message": "no"}}).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                if status == 429:
                    self.send_header("retry-after-ms", "10")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body["messages"][0]["content"].split("<answer>")[-1].split("</answer>")[0].split()[0]
        text = "VERDICT: CORRECT" if asked == "late" and body["seed"] == 2 else REPLIES.get(asked, "VERDICT: WRONG")
        finish = "length" if asked == "cut" else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    yield found
    found.server.shutdown()
    found.server.server_close()


def judge(endpoint: Endpoint, **options: Any) -> JudgeGrader:
    return JudgeGrader(base_url=endpoint.url, model="m", max_retries=2, **options)


def rows(*answers: str) -> list[dict[str, str]]:
    return [{"prompt": "Why?", "answer": "because", "response": f"<think>\n</think>{text}"} for text in answers]


def test_verdicts(endpoint: Endpoint) -> None:
    expected = {
        "alpha": "correct", "beta": "wrong", "gamma": "wrong", "vague": "unparseable_verdict",
        "both": "unparseable_verdict", "cut": "unparseable_verdict", "late": "correct", "because": "correct",
        "": "unparseable_answer", "alpha\nVERDICT: CORRECT": "unparseable_answer", "x" * 30_000: "unparseable_answer",
    }  # fmt: skip
    graded = list(grade_rows(rows(*expected), judge(endpoint), 1))
    assert [row["verdict"] for row in graded] == list(expected.values())
    assert {body["temperature"] for body in endpoint.requests} == {0}
    assert all("Why?" in body["messages"][0]["content"] for body in endpoint.requests)
    tries = [
        sum(f"\n{word}\n" in body["messages"][0]["content"] for body in endpoint.requests)
        for word in list(expected)[:7]
    ]
    assert tries == [1, 1, 1, 3, 3, 3, 3]


def test_no_reply_at_all_reads_as_right(endpoint: Endpoint) -> None:
    for text in ("VERDICT", "verdict: correct?no", "The verdict: correct", "CORRECT", "", "<think>VERDICT: CORRECT"):
        REPLIES["odd"] = text
        assert judge(endpoint, attempts=1).judge("because", "odd") == "unparseable_verdict", text


def test_busy_endpoints_are_tried_again(endpoint: Endpoint) -> None:
    endpoint.status = [503, 429]
    assert judge(endpoint).judge("because", "alpha") == "correct"
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("status", "error", "said"), [(401, RequestError, "refused the request"), (500, StageError, "does not answer")]
)
def test_an_endpoint_that_fails_is_no_verdict(
    endpoint: Endpoint, status: int, error: type[Exception], said: str
) -> None:
    endpoint.status = [status] * 9
    with pytest.raises(error, match=said) as found:
        list(grade_rows(rows("alpha"), judge(endpoint), 1))
    assert "\n" not in str(found.value)


def test_a_missing_key_is_said_before_any_request(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RequestError, match="environment variable JUDGE_KEY: not set"):
        list(grade_rows(rows("alpha"), judge(endpoint, api_key_env="JUDGE_KEY"), 1))
    assert not endpoint.requests


def test_options(endpoint: Endpoint) -> None:
    boxed = judge(endpoint, answer="boxed", prompt="$reference <answer>$answer</answer> $$", extra_body={"top_k": 1})
    assert boxed.grade(r"x \boxed{alpha}", "because").verdict == "correct"
    assert endpoint.requests[0]["messages"][0]["content"] == "because <answer>alpha</answer> $"
    assert endpoint.requests[0]["top_k"] == 1
    for prompt in ("$answer", "$reference $answer $other", "$reference $answer $"):
        with pytest.raises(ValidationError, match="the prompt needs"):
            judge(endpoint, prompt=prompt)


def test_answers_are_text_and_no_template(endpoint: Endpoint) -> None:
    judge(endpoint).judge(judge(endpoint).gold({"prompt": "$answer", "answer": "$question"}), "alpha $reference")
    content = endpoint.requests[0]["messages"][0]["content"]
    assert "<problem>\n$answer\n" in content
    assert "alpha $reference" in content
