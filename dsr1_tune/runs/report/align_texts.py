"""What the report of an alignment run says besides any run's, in English and in Chinese."""

from __future__ import annotations

from dsr1_tune.report.catalogue import Language

ALIGN_TEXTS: dict[str, dict[Language, str]] = {
    "headline_reward": {"en": "change of the mean reward", "zh": "平均奖励的变化"},
    "headline_preferences": {
        "en": "points: change of the share of pairs whose better answer is the likelier one",
        "zh": "个百分点：较优回答概率更高的比例的变化",
    },
    "headline_reward_model": {"en": "of the pairs ranked rightly", "zh": "的回答对排序正确"},
    "summary_reward": {
        "en": "The likeliest answers to {prompts} prompts {where} were worth {before} before and {after} after.",
        "zh": "对 {prompts} 个提示（{where}）的最可能回答，平均奖励由 {before} 变为 {after}。",
    },
    "summary_preferences": {
        "en": "Of {pairs} records {where}, the better answer was the likelier one per token in {before} before and in "
        "{after} after; choosing the longer answer would be right in {length}.",
        "zh": "在 {pairs} 条数据（{where}）中，较优回答按 token 平均概率更高的比例由 {before} 变为 {after}；"
        "仅凭长度选较长者，正确率为 {length}。",
    },
    "summary_reward_model": {
        "en": "Of {pairs} pairs {where}, it ranks the better answer higher in {after}, before training in {before}; "
        "choosing the longer answer would be right in {length}.",
        "zh": "在 {pairs} 对回答（{where}）中，较优回答得分更高的比例为 {after}，训练前为 {before}；"
        "仅凭长度选较长者，正确率为 {length}。",
    },
    "where_held_out": {"en": "that it never trained on", "zh": "从未参与训练"},
    "where_train": {"en": "that it also trained on, as none are held out,", "zh": "没有留出数据，均参与过训练"},
    "outcome": {"en": "Before and after", "zh": "训练前后"},
    "row_reward": {"en": "mean reward", "zh": "平均奖励"},
    "row_tokens": {"en": "tokens per answer", "zh": "每个回答的 token 数"},
    "row_ended": {"en": "answers that the model ended itself", "zh": "由模型自行结束的回答"},
    "row_likelier": {"en": "better answer likelier, per token", "zh": "较优回答概率更高（按 token 平均）"},
    "row_likelier_whole": {"en": "better answer likelier, as a whole", "zh": "较优回答概率更高（按整个回答）"},
    "row_raised": {"en": "better answer raised more than the other", "zh": "较优回答的概率提升更多"},
    "row_raised_margin": {
        "en": "by how much more, on average (DPO's implicit reward)",
        "zh": "平均多提升多少（DPO 隐式奖励）",
    },
    "row_loss_chosen": {"en": "loss on the better answers", "zh": "较优回答上的损失"},
    "row_length": {"en": "for comparison: the longer answer is the better one", "zh": "对照：较长的回答即较优回答"},
    "row_accuracy": {"en": "pairs ranked rightly", "zh": "排序正确的回答对"},
    "row_margin": {"en": "mean margin of the scores", "zh": "平均分差"},
    "row_loss_pairs": {"en": "loss on the pairs", "zh": "回答对上的损失"},
    "row_calibration": {"en": "calibration error", "zh": "校准误差"},
    "calibration": {
        "en": "How sure the reward model is against how often it is right, and the margins of all pairs",
        "zh": "奖励模型的把握程度与实际正确率，以及所有回答对的分差",
    },
    "reward_errors": {
        "en": "Rewards that could not be given, and counted 0 (every one is in reward_errors.jsonl):",
        "zh": "未能给出、按 0 计的奖励（逐条记录见 reward_errors.jsonl）：",
    },
    "chart_reward": {"en": "Mean reward of the answers", "zh": "回答的平均奖励"},
    "chart_layers": {"en": "Reward by layer, after its gate (smoothed)", "zh": "各层奖励（经门控，平滑）"},
    "chart_components": {"en": "Components of layer (smoothed):", "zh": "该层各组成部分（平滑）："},
    "chart_accuracy": {"en": "Pairs ranked rightly", "zh": "排序正确的比例"},
    "chart_pair": {"en": "Implicit rewards of better and worse answers", "zh": "较优与较差回答的隐式奖励"},
    "chart_margin": {"en": "Margin between better and worse answers", "zh": "较优与较差回答之差"},
    "chart_logps": {"en": "Log-probability of better and worse answers", "zh": "较优与较差回答的对数概率"},
    "chart_scores": {"en": "Scores in the batch", "zh": "批内得分"},
    "chart_kl": {"en": "Distance, in nats per token (KL)", "zh": "距离：每 token 的 KL（奈特）"},
    "chart_beta": {"en": "Weight of the KL penalty", "zh": "KL 惩罚权重"},
    "chart_entropy": {"en": "Entropy, in nats per token", "zh": "每 token 的熵（奈特）"},
    "chart_clip": {"en": "Share of tokens held back by the clip", "zh": "被裁剪的 token 占比"},
    "chart_tokens": {"en": "Tokens per answer", "zh": "每个回答的 token 数"},
    "chart_ended": {"en": "Share of answers that the model ended itself", "zh": "模型自行结束的回答占比"},
    "chart_value_loss": {"en": "Value loss", "zh": "价值损失"},
    "chart_explained": {"en": "Explained variance of the values", "zh": "价值的可解释方差"},
    "chart_errors": {"en": "Rewards that failed, per answer", "zh": "每个回答失败的奖励数"},
    "line_batch": {"en": "each step", "zh": "每步"},
    "line_held_out_greedy": {"en": "likeliest answers, before and after", "zh": "训练前后的最可能回答"},
    "line_chosen": {"en": "better", "zh": "较优"},
    "line_rejected": {"en": "worse", "zh": "较差"},
    "line_lowest": {"en": "lowest", "zh": "最低"},
    "line_mean": {"en": "mean", "zh": "平均"},
    "line_highest": {"en": "highest", "zh": "最高"},
    "line_kl_reference": {"en": "from the model as it began", "zh": "与训练开始时的模型"},
    "line_kl_update": {"en": "within the update", "zh": "单次更新内"},
    "line_policy": {"en": "policy", "zh": "策略"},
    "line_value": {"en": "value", "zh": "价值"},
    "stage_load_rewards": {"en": "loading the models that judge", "zh": "加载评判模型"},
    "stage_reference": {"en": "asking the reference", "zh": "计算参考概率"},
}
