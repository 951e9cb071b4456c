"""Text to batches: sources, tokenizers, and streams in which batch k is a function of k alone.

>>> data = TextData(Texts(("one", "two", "three")), Bytes(), length=8, batch=2, cache="~/my-cache")
"""

from jscale.data.cache import Progress, TokenCache
from jscale.data.captioned import CaptionedImages
from jscale.data.corpus import Corpus, TextData
from jscale.data.dataset import Data, Dataset
from jscale.data.feed import Feed, feed, feed_epoch
from jscale.data.files import StandardLibrary, TextFiles, Texts
from jscale.data.images import ImageSource, Shapes
from jscale.data.jsonl import JsonLines
from jscale.data.labelled import LabelledImages
from jscale.data.mixture import Mixture
from jscale.data.packing import Packing, Split, Whole
from jscale.data.pairdata import PairCorpus, PairData
from jscale.data.pairs import JsonPairs, Pairs, PairSource
from jscale.data.shown import ShownImages
from jscale.data.source import Report, Source
from jscale.data.stream import Stream, TokenStream
from jscale.data.tables import ArrayRecord, HuggingFace, Parquet
from jscale.data.tokenizers import BytePairs, Bytes, Tokenizer, TokenizerFile, TokenizerSource

__all__ = [
    "ArrayRecord", "BytePairs", "Bytes", "CaptionedImages", "Corpus", "Data", "Dataset", "Feed",
    "HuggingFace", "ImageSource", "JsonLines", "JsonPairs", "LabelledImages", "Mixture", "Packing",
    "PairCorpus", "PairData", "PairSource", "Pairs", "Parquet", "Progress", "Report", "Shapes",
    "ShownImages", "Source", "Split", "StandardLibrary", "Stream", "TextData", "TextFiles", "Texts",
    "TokenCache", "TokenStream", "Tokenizer", "TokenizerFile", "TokenizerSource", "Whole", "feed",
    "feed_epoch",
]  # fmt: skip
