"""What a run's report.html says, in English and in Chinese: every text in both."""

from __future__ import annotations

from dsr1_tune.report.catalogue import Language
from dsr1_tune.runs.report.align_texts import ALIGN_TEXTS

TEXTS: dict[str, dict[Language, str]] = {
    "title": {"en": "Training report", "zh": "训练报告"},
    "headline": {"en": "change of the held-out loss", "zh": "留出数据上损失的变化"},
    "headline_train": {"en": "change of the loss on training records", "zh": "训练数据上损失的变化"},
    "summary_what": {
        "en": "{base} was adapted with {command} to {files}: {train} records to learn from, {eval} held out.",
        "zh": "以 {command} 方法将 {base} 适配到 {files}：{train} 条用于训练，{eval} 条留出用于评估。",
    },
    "summary_what_short": {
        "en": "{base} was adapted with {command} to {files}.",
        "zh": "以 {command} 方法将 {base} 适配到 {files}。",
    },
    "summary_gain": {
        "en": "On {records} records that it never trained on, the loss went from {before} to {after}: the model is now "
        "as unsure as if it chose among {now} equally likely words at each place, where it was {was} before.",
        "zh": "在 {records} 条从未参与训练的数据上，损失由 {before} 变为 {after}：模型在每个位置上的犹豫程度，"
        "由相当于在 {was} 个等可能的词中选择，变为 {now} 个。",
    },
    "summary_gain_train": {
        "en": "No records were held out. On {records} of the training records the loss went from {before} to {after}; "
        "this does not tell how the model does on anything new.",
        "zh": "没有留出数据。在 {records} 条训练数据上，损失由 {before} 变为 {after}；这不能说明模型在新数据上的表现。",
    },
    "summary_no_gain": {
        "en": "The trained model has not been measured, so nothing can be said about its gain.",
        "zh": "训练后的模型尚未测量，因此无法判断其收益。",
    },
    "summary_trained": {
        "en": "{trained} parameters were trained, {share} of the base's {whole}.",
        "zh": "共训练 {trained} 个参数，为基座 {whole} 个参数的 {share}。",
    },
    "summary_time": {
        "en": "{steps} steps took {time}, at {speed} tokens a second.",
        "zh": "{steps} 步训练用时 {time}，每秒 {speed} 个 token。",
    },
    "summary_alarms": {"en": "Alarms while training: {count}.", "zh": "期间共有 {count} 次警报。"},
    "summary_no_alarms": {"en": "There were no alarms.", "zh": "期间没有警报。"},
    "status_finished": {"en": "finished", "zh": "已完成"},
    "status_running": {"en": "running", "zh": "进行中"},
    "status_interrupted": {"en": "interrupted", "zh": "已中断"},
    "status_failed": {"en": "failed", "zh": "失败"},
    "status_stopped by alarm": {"en": "stopped by an alarm", "zh": "因警报而停止"},
    "status": {"en": "Status", "zh": "状态"},
    "is_partial": {
        "en": "This run is not finished: what stands below is what there is so far.",
        "zh": "本次训练尚未完成：以下为目前已有的内容。",
    },
    "go_on": {"en": "Go on with", "zh": "继续训练"},
    "rolled_back": {
        "en": "The run was rolled back from step {from_step} to step {to_step}, and went on with {factor} × the "
        "learning rate.",
        "zh": "训练曾从第 {from_step} 步回退到第 {to_step} 步，并以 {factor} 倍学习率继续。",
    },
    "sections": {"en": "Sections", "zh": "目录"},
    # alarms
    "alarms": {"en": "Alarms", "zh": "警报"},
    "no_alarms": {"en": "None. Nothing unusual was seen while training.", "zh": "无。训练过程未见异常。"},
    "alarm_what": {"en": "what", "zh": "问题"},
    "alarm_where": {"en": "where", "zh": "位置"},
    "alarm_since": {"en": "since step", "zh": "起始步"},
    "alarm_detail": {"en": "numbers", "zh": "数值"},
    "alarm_try": {"en": "what to try", "zh": "建议"},
    "alarm_answer": {"en": "what was done", "zh": "处理"},
    "answer_warn": {"en": "a warning", "zh": "仅警告"},
    "answer_stop": {"en": "the run was stopped", "zh": "停止训练"},
    "answer_rollback": {"en": "the run was rolled back", "zh": "回退训练"},
    "kind_nan_loss": {"en": "the loss is not a number", "zh": "损失不是有效数值"},
    "kind_nan_gradient": {"en": "gradients are not numbers", "zh": "梯度不是有效数值"},
    "kind_loss_spike": {"en": "the loss has jumped", "zh": "损失突然升高"},
    "kind_gradient_explosion": {"en": "gradients have exploded", "zh": "梯度爆炸"},
    "kind_gradient_vanishing": {"en": "gradients have vanished", "zh": "梯度消失"},
    "kind_router_collapse": {"en": "the router has collapsed onto few experts", "zh": "路由塌缩到少数专家"},
    "kind_dead_experts": {
        "en": "experts that the base used get no tokens any more",
        "zh": "基座使用过的专家不再分到 token",
    },
    "kind_overfitting": {
        "en": "the held-out loss rises while the training loss falls",
        "zh": "过拟合：留出损失上升而训练损失下降",
    },
    # data
    "data": {"en": "Data", "zh": "数据"},
    "no_data": {"en": "What the data held was not recorded.", "zh": "没有数据记录。"},
    "rows_read": {"en": "rows read", "zh": "读入行数"},
    "rows_kept": {"en": "kept", "zh": "保留"},
    "rows_dropped": {"en": "dropped", "zh": "剔除"},
    "to_train": {"en": "to train on", "zh": "用于训练"},
    "held_out": {"en": "held out", "zh": "留出评估"},
    "reason": {"en": "reason for dropping", "zh": "剔除原因"},
    "rows": {"en": "rows", "zh": "行数"},
    "file": {"en": "file", "zh": "文件"},
    # coverage
    "coverage": {"en": "What is trained", "zh": "训练覆盖范围"},
    "no_coverage": {"en": "The audit of what is trained was not recorded.", "zh": "没有训练覆盖记录。"},
    "part": {"en": "part", "zh": "部分"},
    "parameters": {"en": "parameters", "zh": "参数"},
    "adapted": {"en": "reached by training", "zh": "训练覆盖"},
    "trained": {"en": "trained", "zh": "可训练"},
    "frozen": {"en": "frozen", "zh": "冻结"},
    "together": {"en": "together", "zh": "合计"},
    "part_all": {"en": "the whole gradient", "zh": "整体梯度"},
    "part_loss": {"en": "training loss", "zh": "训练损失"},
    "part_held-out loss": {"en": "held-out loss", "zh": "留出损失"},
    "part_attention": {"en": "attention", "zh": "注意力"},
    "part_dense_ffn": {"en": "dense FFN", "zh": "稠密前馈层"},
    "part_shared_experts": {"en": "shared experts", "zh": "共享专家"},
    "part_routed_experts": {"en": "routed experts", "zh": "路由专家"},
    "part_router": {"en": "router", "zh": "路由器"},
    "part_embeddings": {"en": "embeddings", "zh": "词嵌入"},
    "part_norms": {"en": "norms", "zh": "归一化层"},
    "part_other": {"en": "other", "zh": "其他"},
    # curves
    "curves": {"en": "Curves", "zh": "曲线"},
    "no_curves": {"en": "No training step was recorded.", "zh": "没有训练步记录。"},
    "chart_loss": {"en": "Loss", "zh": "损失"},
    "chart_gradients": {"en": "Gradient norm by part (logarithmic)", "zh": "各部分梯度范数（对数坐标）"},
    "chart_speed": {"en": "Tokens a second", "zh": "每秒 token 数"},
    "chart_memory": {"en": "Memory, GiB", "zh": "内存（GiB）"},
    "chart_experts": {"en": "Spread over experts (normalised entropy)", "zh": "专家负载分布（归一化熵）"},
    "line_loss": {"en": "each step", "zh": "每步"},
    "line_smooth": {"en": "smoothed", "zh": "平滑"},
    "line_held_out": {"en": "held-out", "zh": "留出数据"},
    "line_speed": {"en": "each step", "zh": "每步"},
    "line_rss": {"en": "main memory", "zh": "主内存"},
    "line_cuda": {"en": "GPU, peak", "zh": "GPU 峰值"},
    "line_entropy_mean": {"en": "mean of the layers", "zh": "各层平均"},
    "line_entropy_min": {"en": "lowest layer", "zh": "最低的层"},
    "step": {"en": "step", "zh": "步"},
    # experts
    "experts": {"en": "Experts", "zh": "专家"},
    "no_experts": {
        "en": "The base has no routed experts, or their use was not recorded.",
        "zh": "基座没有路由专家，或没有其使用记录。",
    },
    "experts_lead": {
        "en": "Which experts the same held-out text goes to ({rows} routed rows a layer), before and after training: "
        "{layers} layers of {experts} experts each.",
        "zh": "同一份留出文本（每层 {rows} 个路由行）在训练前后分别流向哪些专家："
        "共 {layers} 层，每层 {experts} 个专家。",
    },
    "measure": {"en": "measure", "zh": "指标"},
    "before": {"en": "before", "zh": "训练前"},
    "after": {"en": "after", "zh": "训练后"},
    "while_training": {"en": "while training", "zh": "训练中"},
    "entropy_mean": {
        "en": "evenness (normalised entropy, 1 is even), mean of the layers",
        "zh": "均匀度（归一化熵，1 为完全均匀），各层平均",
    },
    "entropy_min": {"en": "evenness of the least even layer", "zh": "最不均匀层的均匀度"},
    "violation_max": {
        "en": "crowding (MaxVio: largest over mean load, minus 1), worst layer",
        "zh": "拥挤度（MaxVio：最大负载与平均负载之比减 1），最差的层",
    },
    "num_dead": {"en": "experts without a token", "zh": "没有 token 的专家数"},
    "drift_mean": {
        "en": "drift: share of rows that go to other experts than before, mean of the layers",
        "zh": "漂移：去往不同专家的路由行占比，各层平均",
    },
    "drift_max": {"en": "drift of the layer that changed most", "zh": "变化最大层的漂移"},
    "picture": {
        "en": "Load of each expert by layer, before and after training, and the difference",
        "zh": "训练前后各层各专家的负载及其差异",
    },
    # samples
    "samples": {"en": "Answers before and after", "zh": "训练前后的回答"},
    "no_samples": {"en": "No answers were sampled.", "zh": "没有抽取回答样例。"},
    "question": {"en": "question", "zh": "问题"},
    "reference": {"en": "in the data", "zh": "数据中的回答"},
    "not_yet": {"en": "not yet there", "zh": "尚无"},
    # environment
    "environment": {"en": "Time and environment", "zh": "用时与环境"},
    "stage": {"en": "stage", "zh": "阶段"},
    "seconds": {"en": "time", "zh": "用时"},
    "stage_load": {"en": "loading the base", "zh": "加载基座"},
    "stage_evaluate_before": {"en": "measuring before training", "zh": "训练前评估"},
    "stage_train": {"en": "training", "zh": "训练"},
    "stage_evaluate_after": {"en": "measuring after training", "zh": "训练后评估"},
    "stage_check": {"en": "checking what was saved", "zh": "检查保存结果"},
    "machine": {"en": "machine", "zh": "机器"},
    "settings": {"en": "settings", "zh": "设置"},
    "versions": {"en": "versions", "zh": "版本"},
    "data_hashes": {"en": "data files (SHA-256)", "zh": "数据文件（SHA-256）"},
    "footer": {
        "en": "Written by dsr1-tune {version}. Everything here stands in the run folder's manifest.json, "
        "train_log.jsonl, eval.json, experts_load.npz and data/report.json.",
        "zh": "由 dsr1-tune {version} 生成。本页全部内容均可在运行目录的 manifest.json、train_log.jsonl、eval.json、"
        "experts_load.npz 与 data/report.json 中找到。",
    },
    **ALIGN_TEXTS,
}

TRY_ZH: dict[str, str] = {
    "nan_loss": "降低 schedule.learning_rate；若 base.dtype=float16，改用 bfloat16 或 float32",
    "nan_gradient": "降低 schedule.learning_rate；若 base.dtype=float16，改用 bfloat16 或 float32",
    "loss_spike": "降低 schedule.learning_rate 或提高 schedule.warmup_share；检查这些步的数据",
    "gradient_explosion": "降低 schedule.learning_rate 或 schedule.max_grad_norm，或提高 schedule.warmup_share",
    "gradient_vanishing": "确认该部分是否需要训练；提高其 rank 或 alpha；或 base.dtype=float32",
    "router_collapse": "降低 schedule.learning_rate，保持路由器冻结(router.mode)，或使用更多样的数据",
    "dead_experts": "降低 schedule.learning_rate；以 router.mode=bias(sigmoid)或 aux_loss(softmax)平衡路由器",
    "overfitting": "减少 schedule.epochs，降低 adapter.rank，或增加数据；较早的检查点更好",
}


def say(key: str, language: Language) -> str:
    """A text of the report."""
    return TEXTS[key][language]


def named(group: str, name: str, language: Language) -> str:
    """A name such as a part's or a stage's, in words where we have some for it."""
    texts = TEXTS.get(f"{group}_{name}")
    return texts[language] if texts else name
