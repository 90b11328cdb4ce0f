"""Encoders of BERT's and RoBERTa's architecture, of tiny width and random weights; for the tests."""
TEXTS = ["question one two three", "a good answer", "a bad answer, or none"]


def _bert():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return words, dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def _roberta():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pairs.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
                                                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    pairs.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return pairs, dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", bos_token="<s>", sep_token="</s>", eos_token="</s>")


def save_encoder(folder, kind="bert", positions=40):
    """Save a masked language model with its tokenizer."""
    import transformers as t
    t.set_seed(0)
    inner, special = dict(bert=_bert, roberta=_roberta)[kind]()
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    shape = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                 pad_token_id=tokenizer.pad_token_id)
    if kind == "bert": model = t.BertForMaskedLM(t.BertConfig(**shape, max_position_embeddings=positions))
    else: model = t.RobertaForMaskedLM(t.RobertaConfig(**shape, max_position_embeddings=positions + 2))
    model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    return folder
