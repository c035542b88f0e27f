"""A server of OpenAI's chat protocol in a process of its own; the model's name says how it behaves.

right: a good plan, or yes and 4 with their probabilities.   words: the same without probabilities.
malformed: text that is neither.                             again: malformed at first, then right.
failing: the answer 500.   flaky: 500 at first, then right.  slow: an answer after 3 seconds.
strict: refuses options beyond the plain protocol.           garbage: no JSON at all.
"""

import json
import math
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLAN = {
    "principles": ["gravity"],
    "entities": [{"name": "ball", "role": "initiator"}],
    "events": [{"verb": "falls", "subject": "ball", "object": None, "order": 0}],
    "facts": ["the ball falls", "the ball persists"],
    "enhanced_prompt": "a red ball falls ever faster",
}
NAMES = ("right", "words", "malformed", "again", "failing", "flaky", "slow", "strict", "garbage")
SEEN: Counter = Counter()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send(self, code, value):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in NAMES]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, content = request["model"], request["messages"][-1]["content"]
        SEEN[name] += 1
        if name == "slow":
            time.sleep(3)
        if name == "failing" or (name == "flaky" and SEEN[name] == 1):
            return self.send(500, {"error": {"message": "out of luck"}})
        if name == "strict" and request.keys() & {"logprobs", "response_format"}:
            return self.send(400, {"error": {"message": "unknown option"}})
        if name == "garbage":
            return self.send(200, b"<html>not this</html>")
        if name == "malformed" or (name == "again" and SEEN[name] == 1):
            return self.send(200, answer("I would rather write a poem."))
        if isinstance(content, str):
            return self.send(200, answer(json.dumps(PLAN)))
        pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert pictures and all(url.startswith("data:image/png;base64,") for url in pictures)
        question = content[-1]["text"]
        tokens = {"4": 0.5, "5": 0.3, "2": 0.2} if "digit" in question else {"Yes": 0.8, "no": 0.1, "the": 0.1}
        if "unclear" in question and "cannot be seen" in question:
            return self.send(200, answer("Unclear."))
        self.send(200, answer(next(iter(tokens)), tokens if request.get("logprobs") and name != "words" else None))


def answer(text, tokens=None):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if tokens:
        listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in tokens.items()]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    return {"id": "0", "object": "chat.completion", "created": 0, "model": "test", "choices": [choice]}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    sys.stdin.close()
    server.serve_forever()
