"""A checkpoint as a model of lmms-eval: `--model pixel_sail --model_args pretrained=FOLDER`."""

from __future__ import annotations

import itertools
import os

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from pixel_sail.errors import UserError
from pixel_sail.evaluate.lmms.request import PLACEHOLDER, one_image, sampling_of
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Chat, Predictor


class PixelSailLmms(lmms):
    """Answers with text, as `Predictor.chat` does. A task gives the words of its question, and the image."""

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        precision: str = "auto",
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
        images: str = "one",
    ) -> None:
        """`pretrained`, `device`, `precision`: see Predictor.from_pretrained; each process has a GPU of its own.

        `batch_size`: images, with their questions, in one call. `max_new_tokens`: for tasks that set none. `images`:
        "one" refuses a question about several images, "join" puts them into one image.
        """
        super().__init__()
        if images not in ("one", "join"):
            raise UserError(f"images={images}: it is one or join")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: it is a number from 1 on")
        self.batch_size, self.max_new_tokens, self.join = int(batch_size), max_new_tokens, images == "join"
        self.predictor = Predictor.from_pretrained(pretrained, _own_device(device or "auto"), precision)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, in the order of the requests. Raises UserError that names task and question."""
        answers: list[str] = []
        asked = ((sampling_of(request.args[1], self.max_new_tokens), request) for request in requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="answers") as bar:
            for sampling, group in itertools.groupby(asked, key=lambda pair: pair[0]):
                alike = [request for _, request in group]
                for first in range(0, len(alike), self.batch_size):
                    answers += self._answer(alike[first : first + self.batch_size], sampling)
                    bar.update(len(answers) - bar.n)
        return answers

    def _answer(self, requests: list[Instance], sampling: Sampling) -> list[str]:
        chats, place = [], ""
        try:
            for text, _, doc_to_visual, doc_id, task, split in (request.args for request in requests):
                place = f"task {task}, question {doc_id} of {split}"
                image = one_image(doc_to_visual(self.task_dict[task][split][doc_id]), self.join)
                chats.append(Chat(image, [text.replace(PLACEHOLDER, "").strip()]))
            place += f", or one of the {len(requests) - 1} before it" if len(requests) > 1 else ""
            return [answer.text for (answer,) in self.predictor.chat_many(chats, sampling)]
        except UserError as error:
            raise UserError(f"{place}: {error}") from None

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError(
            f"task {requests[0].task_name} compares likelihoods of given answers; this model only answers in its own "
            "words: choose the task's form with output_type generate_until (seedbench, not seedbench_ppl)"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError(f"task {requests[0].task_name} asks in several rounds; only single questions are supported")


def _own_device(device: str) -> str:
    """`accelerate launch` and torchrun number the processes of a machine; each takes the GPU of its number."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank and device in ("auto", "cuda") and torch.cuda.is_available() else device
