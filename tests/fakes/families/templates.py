"""What each family's published chat template prints, written anew from the description of its format.

LLaVA-1.5, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, InternVL, SmolVLM and Idefics3 were compared with what transformers' own tests
and public code quote of the model cards, the others with the description of their formats alone. What continual tuning does
not use (tools, videos, system turns) is left out.
"""

_TEXTS = "selectattr('type', 'equalto', 'text')"
_IMAGES = "selectattr('type', 'equalto', 'image')"

LLAVA = (  # llava-hf/llava-1.5-7b-hf: images first, a blank after every text, no end token, answers marked
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | " + _IMAGES + " %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | " + _TEXTS + " %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_NEXT = (  # llava-hf/llava-v1.6-mistral-7b-hf: nothing is added for generation
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] | " + _IMAGES + " %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | " + _TEXTS + " %}{{ c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + '</s>' }}{% endif %}{% endfor %}"
)
LLAVA_ONEVISION = (  # llava-hf/llava-onevision-qwen2-*-ov-hf: a blank after every role, none in the generation prompt
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] | " + _IMAGES + " %}{{ '<image>' }}{% endfor %}"
    "{% for c in m['content'] | " + _TEXTS + " %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ '\n' + c['text'] }}{% endgeneration %}{% else %}{{ '\n' + c['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN_TURN = (
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
)
_ASSISTANT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
QWEN2 = (  # Qwen/Qwen2-VL-*-Instruct and Qwen/Qwen2.5-VL-*-Instruct: a system turn of its own
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + _QWEN_TURN + "{% endfor %}" + _ASSISTANT
)  # fmt: skip
QWEN3 = "{% for m in messages %}" + _QWEN_TURN + "{% endfor %}" + _ASSISTANT  # Qwen/Qwen3-VL-*-Instruct: no system turn
INTERNVL = (  # OpenGVLab/InternVL3-*-hf
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + _ASSISTANT
)
_SMOL = (
    "{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM = "<|im_start|>" + _SMOL  # HuggingFaceTB/SmolVLM*-Instruct
IDEFICS3 = "<|begin_of_text|>" + _SMOL  # HuggingFaceM4/Idefics3-8B-Llama3
GEMMA3 = (  # google/gemma-3-*-it
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MLLAMA = (  # meta-llama/Llama-3.2-*-Vision-Instruct: a system turn with the date where no picture is shown
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ bos_token }}"
    "{% set seen = namespace(image=false) %}{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{% set seen.image = true %}{% endif %}{% endfor %}{% endfor %}"
    "{% if not seen.image %}{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: ' + date_string + '\n\n<|eot_id|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
