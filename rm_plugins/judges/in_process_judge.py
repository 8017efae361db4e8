"""Language models in this process as judges."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.component import ModelSource
from rm_plugins.errors import DataError, SpecError
from rm_plugins.generation import Generator, GreedyCompletion, Sampling
from rm_plugins.judges.caching_judge import CachingJudge
from rm_plugins.judges.judge import CUT_OFF, Question, Reply
from rm_plugins.judges.model_files import folder_digest
from rm_plugins.one_thread import OneThread
from rm_plugins.replies import (
    Labels,
    after_reasoning,
    end_of_reasoning,
    first_word,
    has_open_reasoning,
    opens_reasoning_at_end,
    with_spaces,
)


class InProcessJudge(CachingJudge):
    """A causal language model that runs in this process and takes the most likely token at every step.

    Args:
        model: A model folder or a model id of the hub.
        max_tokens: The longest answer, in tokens, including reasoning.
        label_tokens: The same for a question whose answer is a label. A model that reasons first needs more.
        template_kwargs: Further arguments of the chat template, such as ``{"enable_thinking": false}``.
        options: Keyword arguments for the engine that loads the model, such as ``dtype`` or ``revision``.
        batch_size: The number of questions that are answered at a time; by default the engine's own.
        cache: A folder for the replies, which any number of processes may share.

    Raises:
        SpecError: A number is less than 1, or the folder of the cache cannot be made.
    """

    keys_without_effect: ClassVar[frozenset[str]] = CachingJudge.keys_without_effect | {"batch_size"}

    def __init__(
        self,
        *,
        model: ModelSource,
        max_tokens: int = 1024,
        label_tokens: int = 8,
        template_kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        cache: str | None = None,
    ) -> None:
        for key, number in {"max_tokens": max_tokens, "label_tokens": label_tokens, "batch_size": batch_size}.items():
            if number is not None and number < 1:
                raise SpecError(f"must be at least 1, not {number}.", key=key)
        self.model = model
        self.max_tokens = max_tokens
        self.label_tokens = label_tokens
        self.template_kwargs = dict(template_kwargs or {})
        self.options = dict(options or {})
        self.batch_size = batch_size
        self._digest: str | None = None
        self._one_thread = OneThread()
        self._generator: Generator | None = None
        self._vocabulary: list[str] = []
        super().__init__(cache=cache)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_generator": None, "_vocabulary": []}

    @property
    def identity(self) -> dict[str, Any]:
        """The model's files or id, and the settings."""
        self._digest = self._digest or folder_digest(self.model)
        settings = ("max_tokens", "label_tokens", "template_kwargs", "options")
        return {"name": self.name, "model": self._digest, **{key: getattr(self, key) for key in settings}}

    def close(self) -> None:
        """Free the memory of the model; asking again loads it again."""
        with self._one_thread:
            generator, self._generator = self._generator, None
        if generator is not None:
            generator.close()

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Write the answers, or read the label probabilities at their first token.

        Raises:
            ModelError: The model cannot be loaded, or fails.
        """
        with self._one_thread:
            generator = self._loaded()
            prompts: dict[int, list[int]] = {}
            replies: dict[int, Reply] = {}
            for place, question in enumerate(questions):
                row = {"prompt": list(question.messages), "chat_template_kwargs": self.template_kwargs}
                try:
                    prompts[place] = generator.prompts.tokens(row, "the question")
                except DataError as error:
                    replies[place] = Reply("", error=str(error))
            for labels in dict.fromkeys(questions[place].labels for place in prompts):
                places = [place for place in prompts if questions[place].labels == labels]
                asked = [prompts[place] for place in places]
                replies.update(zip(places, self._answered(generator, asked, labels), strict=True))
        return [replies[place] for place in range(len(questions))]

    @abstractmethod
    def _load(self, sampling: Sampling) -> Generator:
        """Load the model, which leaves room for the tokens of an answer."""

    def _loaded(self) -> Generator:
        if self._generator is None:
            self._generator = self._load(Sampling(1, max_new_tokens=max(self.max_tokens, self.label_tokens)))
        return self._generator

    def _answered(self, generator: Generator, prompts: Sequence[list[int]], labels: tuple[str, ...]) -> list[Reply]:
        """The replies to questions with the same labels."""
        if not labels:
            written = generator.complete_greedily(prompts, self.max_tokens)
            return [self._text(generator, prompt, found) for prompt, found in zip(prompts, written, strict=True)]
        try:
            known = Labels(labels)
        except SpecError as error:
            return [Reply("", error=f"the question's labels cannot be used: {error.message}")] * len(prompts)
        words = self._words(generator)
        watched = [token for token, word in enumerate(words) if known.label_of(word) is not None]
        written = generator.complete_greedily(prompts, self.label_tokens, watched)
        return [self._label(generator, prompt, found, known) for prompt, found in zip(prompts, written, strict=True)]

    def _text(self, generator: Generator, prompt: Sequence[int], written: GreedyCompletion) -> Reply:
        """The reply of a written answer."""
        reply = Reply("", None, "", len(prompt), len(written.tokens) + written.finished)
        if not written.finished:
            return _failed(reply, "the judge's answer was cut off at max_tokens; raise max_tokens")
        tokens = self._spelt(generator, written)
        start = end_of_reasoning("".join(tokens))
        if has_open_reasoning("".join(tokens)) or (start is None and _opens_reasoning(generator, prompt)):
            return _failed(reply, "the judge's reasoning did not end, so there is no answer after it")
        text = after_reasoning(written.text) or ""
        if start is not None and end_of_reasoning(written.text) is None:  # special tokens mark it, which the text lacks
            first = first_word(tokens, start)
            answer = [] if first is None else list(written.tokens[first:])
            text = str(generator.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        if not text:
            return _failed(reply, f"the judge's answer is empty{' after its reasoning' if start is not None else ''}")
        return Reply(text, None, "", reply.prompt_tokens, reply.completion_tokens)

    def _label(self, generator: Generator, prompt: Sequence[int], written: GreedyCompletion, labels: Labels) -> Reply:
        """The reply of an answer whose first token is a label."""
        reply = Reply("", None, "", len(prompt), len(written.tokens) + written.finished)
        words, tokens = self._words(generator), self._spelt(generator, written)
        text = "".join(tokens)
        start = end_of_reasoning(text)
        if has_open_reasoning(text) or (start is None and _opens_reasoning(generator, prompt)):
            return _failed(reply, "the judge's reasoning did not end within label_tokens; raise it")
        first = first_word(tokens, start or 0)
        if first is None:
            return _failed(reply, "the judge's answer is empty")
        alternatives = [(words[token], probability) for token, probability in written.watched[first].items()]
        found = labels.at(tokens[first:], alternatives)
        if found.error:
            return _failed(reply, found.error)
        answer = "".join(tokens[first:]).strip() + ("" if written.finished else CUT_OFF)
        return Reply(answer, found.masses, "", reply.prompt_tokens, reply.completion_tokens)

    def _spelt(self, generator: Generator, written: GreedyCompletion) -> list[str]:
        """The tokens of an answer as text. A model may have more tokens than its tokenizer, which are nothing."""
        words = self._words(generator)
        return [words[token] if token < len(words) else "" for token in written.tokens]

    def _words(self, generator: Generator) -> list[str]:
        """The tokens of the vocabulary as text, by id."""
        if not self._vocabulary:
            tokenizer = generator.tokenizer
            known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            # Byte-level vocabularies have characters of other scripts as bytes.
            in_bytes = tokenizer.convert_tokens_to_string(["\u0120"]) == " "
            self._vocabulary = [
                with_spaces(token or "")
                if not token or token.isascii() or not in_bytes
                else str(tokenizer.convert_tokens_to_string([token]))
                for token in known
            ]
        return self._vocabulary


def _failed(reply: Reply, error: str) -> Reply:
    return Reply("", None, error, reply.prompt_tokens, reply.completion_tokens)


def _opens_reasoning(generator: Generator, prompt: Sequence[int]) -> bool:
    """Whether the chat template ends the prompt with the beginning of reasoning."""
    return opens_reasoning_at_end(str(generator.tokenizer.decode(list(prompt[-8:]))))
