"""A tiny random Llama with its own SentencePiece tokenizer, and an endpoint on loopback."""

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}<答>：{% else %}<问>：{% endif %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<答>：' }}{% endif %}"
)
_TEXTS = (
    "<问>：请回答下面选择题。\n<答>：答案是A。B。C。D。E。",
    "吗啡急性中毒时可用于解救的药物是纳洛酮。",
    "肝素过量引起出血时，应选用的对抗药物是鱼精蛋白。",
    "The answer is aspirin, insulin or serum electrolytes.",
)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A Hugging Face directory as the export writes it: random Llama, SentencePiece tokenizer, chat template."""
    import sentencepiece

    from tests.unit.convert.small_models import SMALL, write_model

    folder = tmp_path_factory.mktemp("hf")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    directory = write_model(folder / "模型 dir", dataclasses.replace(SMALL["llama"], vocab_size=pieces))
    (folder / "tokenizer.model").rename(directory / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    # Sampling settings in the directory must not disturb greedy generation.
    sampling = {"eos_token_id": 2, "do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    (directory / "generation_config.json").write_text(json.dumps(sampling))
    return directory


@pytest.fixture
def baichuan_directory(model_directory, tmp_path):
    """An export of Baichuan2: random weights, the project's own Python file, the same tokenizer."""
    import shutil

    from megatron_huatuo.models.families import get_family
    from tests.unit.convert.small_models import SMALL, write_model

    rows = json.loads((model_directory / "config.json").read_text())["vocab_size"]
    directory = write_model(tmp_path / "baichuan", dataclasses.replace(SMALL["baichuan2-alibi"], vocab_size=rows))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(model_directory / name, directory)
    config = json.loads((directory / "config.json").read_text())
    get_family("baichuan2").add_model_code(directory, config)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def write_questions():
    """Write an exam of `count` questions: half single, half multiple answer; question k has answer "ABCDE"[k % 5]."""

    def write(path, count):
        options = dict(zip("ABCDE", ("腹水", "清蛋白", "血电解质", "肝活检", "B超检查"), strict=True))
        with open(path, "w", encoding="utf-8") as handle:
            for k in range(count):
                several = k % 2 == 1
                record = {
                    "id": f"q{k}",
                    "question": f"第{k}题，有意义的是" + "？" * (k % 3),
                    "option": options,
                    "answer": "ABE" if several else "ABCDE"[k % 5],
                    "question_type": "多项选择题" if several else "最佳选择题",
                    "source": "pharmacy" if k < count // 2 else "tcm",
                }
                handle.write(json.dumps(record, ensure_ascii=False) + "\n")
        return path

    return write


class Endpoint:
    """A chat-completion server. `reply(prompt, number)` returns text, or (status, body, headers) for anything else.

    `answers(request)`, where it is set, sees the whole body of the request instead.
    """

    def __init__(self):
        self.requests = []
        self.keys = []
        self.reply = lambda prompt, number: "答案是A。"
        self.answers = None
        self.finish_reason = "stop"
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, handler):
        payload = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(payload)
            self.keys.append(handler.headers.get("Authorization"))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        result = self.answers(payload) if self.answers else self.reply(payload["messages"][-1]["content"], number)
        with self._lock:
            self.in_flight -= 1
        status, body, headers = result if isinstance(result, tuple) else (200, self._completion(result), {})
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _completion(self, text):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return json.dumps({**body, "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}).encode()

    @property
    def prompts(self):
        return [request["messages"][-1]["content"] for request in self.requests]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.close()
