"""A Llama of Llama 3.1's architecture and chat template, of tiny width and random weights, and MultiPref as the hub has it; for the tests."""
from functools import cache

import pandas as pd

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"]
TEMPLATE = ("{{- bos_token }}{% for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")


@cache
def tokenizer():
    """Byte pairs with Llama 3's special tokens, its template, a BOS from the post-processor, and no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    from responserank.llm.simulated import simulate
    bpe.train_from_iterator([*simulate(200).completion_a, "user assistant word"], trainers.BpeTrainer(
        vocab_size=1000, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    bpe.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", chat_template=TEMPLATE)


def save_llama(folder, seed=0, tokenizer=tokenizer(), model=None, **config):
    """Save a language model in bf16, as Llama's are, with its tokenizer."""
    import torch
    import transformers
    transformers.set_seed(seed)
    rope = dict(rope_type="llama3", rope_theta=500000., factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=8192)
    config = transformers.LlamaConfig(**dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=131072, rope_parameters=rope,
                                             bos_token_id=0, eos_token_id=[1, 4]) | config)
    (model or transformers.LlamaForCausalLM)(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CARD = "---\nlicense: odc-by\nconfigs:\n" + "".join(f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n"
                                                    for c in ("default", "human_overall_binarized")) + "---\n# MultiPref\n"


def save_multipref(folder, n=200, too_long=3):
    """Write MultiPref's two configurations as a clone of the hub's repository, some texts longer than the paper's limit."""
    from responserank.llm.simulated import write_multipref
    write_multipref(folder, n=n)
    (folder / "README.md").write_text(CARD)
    path = folder / "default/train-00000-of-00001.parquet"
    table = pd.read_parquet(path)
    table.loc[table.index[:too_long], "completion_a"] = "word " * 1100
    table.to_parquet(path, index=False)
    return folder
