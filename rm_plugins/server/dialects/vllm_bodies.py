"""The bodies of vLLM's pooling requests and answers, compatible with vLLM 0.33.0.

A field that allows only its default value would change the reward otherwise, so other values are not offered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rm_plugins.server.dialects import tei
from rm_plugins.server.dialects.drop_in import RequestBody

_Filled: TypeAlias = Annotated[str, Field(min_length=1)]
Token: TypeAlias = Annotated[int, Field(ge=0)]
_Item = TypeVar("_Item")
_Some: TypeAlias = Annotated[list[_Item], Field(min_length=1, fail_fast=True)]
Input: TypeAlias = _Filled | _Some[_Filled] | _Some[Token] | _Some[_Some[Token]]
"""A text, several texts, the token ids of one text, or those of several texts."""


class Options(RequestBody):
    """The fields of all requests."""

    model: str | None = Field(None, description="The served model's name; may be omitted.")
    request_id: str | None = None
    use_activation: bool | None = Field(
        None,
        description="False returns the reward itself; otherwise the answer equals vLLM's for the same model: the sigmoid of the reward, "
        "or the reward itself for `problem_type: regression`.",
    )
    activation: bool | None = Field(None, description="The name of `use_activation` in older versions of vLLM.")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        description="A text with more tokens is refused, because truncating it would differ from the reward's training; -1 means no limit. "
        "A text that is too long for the model is truncated as in the reward's training.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="A text that is too long for the model is refused if the reward truncates on the other side."
    )
    padding: Literal["do_not_pad"] | None = None
    priority: Literal[0] = 0
    normalize: None = Field(None, description="Removed from vLLM.")

    @property
    def is_raw(self) -> bool:
        """Whether the reward itself is requested."""
        return (self.activation if self.use_activation is None else self.use_activation) is False


class Completions(Options):
    """Texts that the client has rendered, or token ids."""

    input: Input
    add_special_tokens: bool = Field(
        True, description="Whether the tokenizer adds special tokens; false for a text that already has them."
    )


class TextPart(RequestBody):
    """A text part of a message, the only kind of part that the reward takes."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation; fields other than role and content are passed to the chat template."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="allow")

    role: Literal["assistant", "developer", "function", "system", "tool", "user"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None


class Chat(Options):
    """One conversation, which the reward renders with its own template."""

    messages: _Some[ChatMessage]
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: Literal[False] = False
    add_generation_prompt: bool = Field(False, description="Whether to add the beginning of another turn.")
    continue_final_message: Literal[False] = False
    chat_template: None = None


class _Encoding(RequestBody):
    task: Literal["classify"] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    dimensions: None = None


class PoolingCompletions(Completions, _Encoding):
    """Texts or token ids, and the encoding of their scores."""


class PoolingChat(Chat, _Encoding):
    """One conversation, and the encoding of its score."""


class _Pairs(Options):
    names: ClassVar[tuple[str, str]]
    max_tokens_per_query: int | None = Field(
        0, ge=0, description="A prompt with more tokens is refused; 0 or null means no limit."
    )
    max_tokens_per_doc: int | None = Field(
        0, ge=0, description="A completion with more tokens is refused; 0 or null means no limit."
    )
    instruction: None = None

    @property
    def sides(self) -> tuple[str | list[str], str | list[str]]:
        """Prompts and completions."""
        prompts, completions = (getattr(self, name) for name in self.names)
        return prompts, completions


Texts: TypeAlias = str | _Some[str]


class QueriesDocuments(_Pairs):
    """Prompts and completions: one of each, one prompt for all completions, or one prompt per completion."""

    names = ("queries", "documents")
    queries: Texts
    documents: Texts


class QueriesItems(_Pairs):
    """The same under another name."""

    names = ("queries", "items")
    queries: Texts
    items: Texts


class Data(_Pairs):
    """The same under other names."""

    names = ("data_1", "data_2")
    data_1: Texts
    data_2: Texts


class TextPair(_Pairs):
    """The same under their oldest names."""

    names = ("text_1", "text_2")
    text_1: Texts
    text_2: Texts


class TextDocument(BaseModel):
    """A completion in the form of Cohere's and Jina's clients; other fields, which these rank by, are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    text: str


class Rerank(_Pairs):
    """A prompt and completions to rank."""

    query: str
    documents: str | Annotated[list[str | TextDocument], Field(min_length=1, fail_fast=True)]
    top_n: int | None = Field(0, ge=0, description="The number of completions to return, the best first; 0 or null for all.")
    rank_fields: list[Literal["text"]] | None = Field(None, description="The fields of a document to rank by: only `text`.")

    @property
    def texts(self) -> list[str]:
        """The completions."""
        documents = [self.documents] if isinstance(self.documents, str) else self.documents
        return [document if isinstance(document, str) else document.text for document in documents]


def _has(**names: str) -> Discriminator:
    """Distinguishes bodies by the first of these fields that they have; bodies without any of them are of the first kind."""

    def kind(body: Any) -> str:
        return next((kind for kind, name in names.items() if isinstance(body, Mapping) and name in body), next(iter(names)))

    return Discriminator(kind)


_CHAT_OR_NOT = _has(completion="input", chat="messages")
Classify: TypeAlias = Annotated[Annotated[Completions, Tag("completion")] | Annotated[Chat, Tag("chat")], _CHAT_OR_NOT]
Pooling: TypeAlias = Annotated[
    Annotated[PoolingCompletions, Tag("completion")] | Annotated[PoolingChat, Tag("chat")], _CHAT_OR_NOT
]
Score: TypeAlias = Annotated[
    Annotated[QueriesDocuments, Tag("documents")]
    | Annotated[QueriesItems, Tag("items")]
    | Annotated[Data, Tag("data")]
    | Annotated[TextPair, Tag("texts")],
    _has(documents="documents", items="items", data="data_1", texts="text_1"),
]
EitherRerank: TypeAlias = Annotated[Annotated[Rerank, Tag("vllm")] | Annotated[tei.Rerank, Tag("tei")], tei.OR_VLLM]
"""TEI has the same path with another body."""


class RankUsage(BaseModel):
    """The number of tokens."""

    prompt_tokens: int
    total_tokens: int


class Usage(RankUsage):
    """The number of tokens, in the form of the other endpoints."""

    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class Classified(BaseModel):
    """A text's score, as the only probability of the only class."""

    index: int
    label: str
    probs: list[float]
    num_classes: int = 1


class Pooled(BaseModel):
    """A text's score, as a vector of one number."""

    index: int
    object: str = "pooling"
    data: list[float] | str


class ScoredPair(BaseModel):
    """A pair's score."""

    index: int
    object: str = "score"
    score: float


class Answer(BaseModel, Generic[_Item]):
    """The answer of ``POST /classify``, ``POST /pooling`` and ``POST /score``."""

    id: str
    object: str = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    usage: Usage
    data: list[_Item]


class Document(BaseModel):
    """A ranked completion."""

    text: str
    multi_modal: None = None


class Ranked(BaseModel):
    """A completion, its position in the request, and its score."""

    index: int
    document: Document
    relevance_score: float


class Ranking(BaseModel):
    """The answer of ``POST /rerank``: the best first."""

    id: str
    model: str
    usage: RankUsage
    results: list[Ranked]


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "rm-plugins"
    root: str
    parent: None = None
    max_model_len: int | None
    permission: list[Any] = []


class ModelList(BaseModel):
    """The served model, once for each of its names."""

    object: str = "list"
    data: list[ModelCard]


class Embeddings(RequestBody):
    """Texts or token ids."""

    model: str | None = Field(None, description="The served model's name; may be omitted.")
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[1] | None = None


class Embedded(BaseModel):
    """A text's reward, as a vector of one number; in base64, a little-endian 32-bit float."""

    index: int
    object: str = "embedding"
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """The answer of ``POST /v1/embeddings``."""

    object: str = "list"
    data: list[Embedded]
    model: str
    usage: RankUsage


class Tokenize(RequestBody):
    """A text to tokenize."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


def _has_messages(body: Any) -> bool:
    return isinstance(body, Mapping) and "messages" in body and "prompt" not in body


class TokenizeChat(RequestBody):
    """A conversation to tokenize."""

    model: str | None = None
    messages: _Some[ChatMessage]
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: Literal[False] = False
    add_generation_prompt: bool = True
    continue_final_message: Literal[False] = False
    chat_template: None = None
    tools: None = None
    return_token_strs: bool | None = False


EitherTokenize: TypeAlias = Annotated[
    Annotated[Tokenize, Tag("vllm")] | Annotated[TokenizeChat, Tag("chat")] | Annotated[tei.Tokenize, Tag("tei")],
    Discriminator(lambda body: "tei" if tei.is_for_tei(body) else "chat" if _has_messages(body) else "vllm"),
]
"""TEI has the same path with another body."""


class Tokens(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenize(RequestBody):
    """Token ids to write as text."""

    model: str | None = None
    tokens: Annotated[list[Token], Field(fail_fast=True)]


class Detokenized(BaseModel):
    """The text of token ids."""

    prompt: str


class Load(BaseModel):
    """The answer of ``GET /load``."""

    server_load: int = Field(description="Requests that wait or are being scored.")
