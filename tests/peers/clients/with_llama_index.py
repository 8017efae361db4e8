"""LlamaIndex's postprocessors."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.siliconflow_rerank import SiliconFlowRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

from tests.peers.clients.talk import in_order, talk


def _ranked(postprocessor: Any, query: str, documents: list[str]) -> list[float]:
    nodes = [NodeWithScore(node=TextNode(id_=str(place), text=text)) for place, text in enumerate(documents)]
    ranked = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(query))
    return in_order([(int(node.node.node_id), node.score) for node in ranked], len(documents))


def cohere_rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`CohereRerank`."""
    return _ranked(
        CohereRerank(top_n=len(documents), model=model, api_key="none", base_url=url, max_retries=2), query, documents
    )


def tei_rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`TextEmbeddingInference`, which looks at no status and takes any list for an answer."""
    return _ranked(TextEmbeddingInference(top_n=len(documents), base_url=url, model_name=model), query, documents)


def siliconflow_rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`SiliconFlowRerank`."""
    ranker = SiliconFlowRerank(model=model, base_url=f"{url}/v1/rerank", api_key="none", top_n=len(documents))
    return _ranked(ranker, query, documents)


def jina_rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`JinaRerank`."""
    return _ranked(JinaRerank(top_n=len(documents), model=model, base_url=f"{url}/v1", api_key="none"), query, documents)


if __name__ == "__main__":
    talk("llama-index-core", cohere_rerank, tei_rerank, siliconflow_rerank, jina_rerank)
