"""The answer parser on hand-written replies, Chinese and English."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.evaluate.answer_parser import parse_answer

DATA = Path(__file__).parents[4] / "shared" / "data" / "huatuo100_single_turn"
TESTS = {"A": "腹水", "B": "清蛋白", "C": "血电解质", "D": "肝活检", "E": "B超检查"}
NESTED = {"A": "清蛋白", "B": "血清蛋白", "C": "血清", "D": "血清蛋白电泳", "E": "前清蛋白"}
VITAMINS = {"A": "维生素A", "B": "维生素B", "C": "维生素C", "D": "维生素D"}
ENGLISH = {"A": "Aspirin", "B": "Vitamin C", "C": "Serum electrolytes", "D": "Insulin", "E": "All of the above"}
NUMBERS = {"A": "5", "B": "15", "C": "0.5", "D": "5-10"}
ALL_IN_ONE = {"A": "发热", "B": "咳嗽", "C": "胸痛", "D": "以上都是"}
DRUGS = {"A": "阿司匹林", "B": "华法林", "C": "肝素", "D": "氯吡格雷", "E": "利伐沙班"}
ANTIDOTES = {"A": "纳洛酮", "B": "鱼精蛋白", "C": "氟马西尼", "D": "乙酰半胱氨酸", "E": "维生素K"}
PAIRS = {"A": "乙型肝炎", "B": "丙型肝炎", "C": "A和B", "D": "戊型肝炎"}

SINGLE = [
    # the letter alone
    (TESTS, "C", "C"),
    (TESTS, "c", "C"),
    (TESTS, "Ｃ", "C"),
    (TESTS, "Ⓒ", "C"),
    (TESTS, "C。", "C"),
    (TESTS, "（C）", "C"),
    (TESTS, "**C**", "C"),
    (TESTS, "C. 血电解质", "C"),
    (TESTS, "C、血电解质。因为它与肝功能无关。", "C"),
    (TESTS, "C：血电解质", "C"),
    (TESTS, r"\boxed{C}", "C"),
    # statements
    (TESTS, "选B", "B"),
    (TESTS, "选 B。", "B"),
    (TESTS, "我选择D。", "D"),
    (TESTS, "应选项D。", "D"),
    (TESTS, "故选：D", "D"),
    (TESTS, "答案：D", "D"),
    (TESTS, "答案:d", "D"),
    (TESTS, "答案\n\nD. 肝活检", "D"),
    (TESTS, "答案是：\nD. 肝活检\n\n解析：A选项腹水常见，B选项清蛋白下降。", "D"),
    (TESTS, "【答案】D【解析】腹水是失代偿期的表现。", "D"),
    (TESTS, "正确选项为D。", "D"),
    (TESTS, "正确答案应该是选项D，因为A、B都不能确诊。", "D"),
    (TESTS, "本题的最佳答案为D项。", "D"),
    (TESTS, "答案是A。腹水最有意义，清蛋白次之。", "A"),
    (TESTS, "符合题意的是D。", "D"),
    (TESTS, "因此，D是正确答案。", "D"),
    (TESTS, "血电解质是正确答案，其余与肝功能有关。", "C"),
    (TESTS, "最有可能的诊断手段是D。腹水无特异性。", "D"),
    (TESTS, "确诊依靠的检查应当为D。", "D"),
    # reasoning before the answer, the option given by its text
    (TESTS, "腹水和清蛋白有意义，血电解质意义不大，因此答案是血电解质。", "C"),
    (TESTS, "腹水提示门脉高压，清蛋白反映合成功能，所以正确答案是肝活检。", "D"),
    (TESTS, "A腹水：有意义。B清蛋白：有意义。C血电解质：意义不大。综上，选C。", "C"),
    (TESTS, "A. 腹水：常见\nB. 清蛋白：下降\nC. 血电解质：无特异性\n答案：血电解质", "C"),
    (TESTS, "腹水可见于多种疾病，清蛋白也可下降。\n\nD", "D"),
    (TESTS, "腹水可见于多种疾病，清蛋白也可下降。\nD. 肝活检", "D"),
    (TESTS, "腹水常见，清蛋白下降。综上所述，肝活检最可靠。", "D"),
    (TESTS, "肝活检", "D"),
    (TESTS, "肝活检可以确诊肝硬化。", "D"),
    (TESTS, "<think>先看A，再看B，应选A。</think>答案是D", "D"),
    # letters that belong to words
    (TESTS, "患者体温39℃，C反应蛋白升高，维生素C缺乏，答案是肝活检。", "D"),
    (TESTS, "答案是B超检查。", "E"),
    (TESTS, "应做B超检查", "E"),
    (TESTS, "患者为A型血，应选B超检查。", "E"),
    (TESTS, "乙肝患者DNA阳性，CT检查也可以，但选D。", "D"),
    (VITAMINS, "坏血病由缺乏维生素C引起，答案是维生素C。", "C"),
    (VITAMINS, "维生素A与夜盲有关，维生素B与脚气病有关，故选维生素D", "D"),
    (VITAMINS, "答案是C，不是维生素A。", "C"),
    # corrections and negations
    (TESTS, "答案不是A，而是C。", "C"),
    (TESTS, "不是A，而是C", "C"),
    (TESTS, "不选B，选D。", "D"),
    (TESTS, "答案是C，而不是A。", "C"),
    (TESTS, "答案是A。不对，重新考虑后，答案应改为D。", "D"),
    (TESTS, "我原以为答案是A，更正：D", "D"),
    (TESTS, "排除A、B、C，因此选D。", "D"),
    (TESTS, "A错误，B错误，C错误，D正确。", "D"),
    (TESTS, "是选A还是选C呢？应该选C。", "C"),
    (TESTS, "如果选A，则与病史不符，故选D。", "D"),
    # option texts contained in one another
    (NESTED, "答案是血清蛋白。", "B"),
    (NESTED, "答案是血清蛋白电泳。", "D"),
    (NESTED, "清蛋白和血清都不特异，所以答案是前清蛋白。", "E"),
    (NESTED, "清蛋白", "A"),
    (NUMBERS, "答案是15。", "B"),
    (NUMBERS, "成人用量0.5", "C"),
    (NUMBERS, "用量为5-10", "D"),
    (ALL_IN_ONE, "发热、咳嗽、胸痛均可出现，答案是以上都是。", "D"),
    (PAIRS, "答案是A和B", "C"),
    # English
    (ENGLISH, "The answer is (C)", "C"),
    (ENGLISH, "The correct answer is C: Serum electrolytes.", "C"),
    (ENGLISH, "Answer: c", "C"),
    (ENGLISH, "Aspirin is useful and insulin too. Therefore, the answer is serum electrolytes.", "C"),
    (ENGLISH, "I would choose option D because aspirin does not lower glucose.", "D"),
    (ENGLISH, "The answer is not A; it is C.", "C"),
    (ENGLISH, "Not A but D.", "D"),
    (ENGLISH, "Option D is correct.", "D"),
    (ENGLISH, "D is the best answer.", "D"),
    (ENGLISH, "A 35-year-old patient with type A influenza and hepatitis B needs insulin.", "D"),
    (ENGLISH, "A is wrong. B is incorrect. So the correct option is **D**.", "D"),
    (ENGLISH, "A patient with scurvy lacks vitamin C.", "B"),
    (ENGLISH, "The best choice would be insulin.", "D"),
    (ENGLISH, "Answer: E. All of the above", "E"),
    (ENGLISH, "It must be D.", "D"),
    # the many ways of saying it
    (TESTS, "本题答案：C（血电解质）。", "C"),
    (TESTS, "参考答案：C", "C"),
    (TESTS, "标准答案是C。", "C"),
    (TESTS, "此题应选C。", "C"),
    (TESTS, "综上所述，正确答案是C选项。", "C"),
    (TESTS, "根据以上分析，选项C是正确的。", "C"),
    (TESTS, "A选项正确吗？不正确。B选项也不正确。C选项正确。", "C"),
    (TESTS, "我认为应该是C。", "C"),
    (TESTS, "应该是血电解质吧", "C"),
    (TESTS, "所以本题选C，血电解质。", "C"),
    (TESTS, "正确的选项是 C。", "C"),
    (TESTS, "正确答案：C 血电解质", "C"),
    (TESTS, "答案为（C）血电解质。", "C"),
    (TESTS, "答案 C", "C"),
    (TESTS, "答案是 C 选项", "C"),
    (TESTS, "答案是“血电解质”。", "C"),
    (TESTS, "答案为C项血电解质，其余各项均有意义。", "C"),
    (TESTS, "C选项：血电解质", "C"),
    (TESTS, "选项C：血电解质", "C"),
    (TESTS, "经过分析，A、B、D、E均有意义，只有C意义不大，所以选择C。", "C"),
    (TESTS, "首先排除A，其次排除B，D和E也不对，所以是C", "C"),
    (TESTS, "答案是C，理由如下：A. 腹水……B. 清蛋白……", "C"),
    (TESTS, "答案是C\n\nA. 腹水是失代偿的表现\nB. 清蛋白是合成功能", "C"),
    (TESTS, "C\n\n解析：A选项腹水", "C"),
    (TESTS, "The answer is: C", "C"),
    (TESTS, "Therefore, the correct answer is option C.", "C"),
    (TESTS, "C) 血电解质", "C"),
    (TESTS, "B超检查、血电解质都不能确诊，只有肝活检可以。", "D"),
    (TESTS, "(C) 血电解质", "C"),
    (TESTS, "I think the answer is C.", "C"),
    (TESTS, "Final answer: C", "C"),
    (TESTS, "The most appropriate option is C.", "C"),
    (TESTS, "My choice is C", "C"),
    (TESTS, "So it's C.", "C"),
    (TESTS, "答案应选D", "D"),
    (TESTS, "正确选项：D", "D"),
    (TESTS, "答案应当选择D。", "D"),
    (TESTS, "选（D）", "D"),
    (TESTS, "答案:【D】", "D"),
    (TESTS, "答案：[D]", "D"),
    (TESTS, "故答案为D．", "D"),
    (TESTS, "故正确答案是D。", "D"),
    (TESTS, "本题选D", "D"),
    (TESTS, "因此选择选项D。", "D"),
    (TESTS, "所以，选D。", "D"),
    (TESTS, "因此，应选择肝活检。", "D"),
    (TESTS, "故应选肝活检", "D"),
    (TESTS, "正确答案是选项D：肝活检。", "D"),
    (TESTS, "最佳选择是D", "D"),
    (TESTS, "首选D", "D"),
    (TESTS, "首选肝活检。", "D"),
    (TESTS, "D是正确的。", "D"),
    (TESTS, "D对", "D"),
    (TESTS, "答案不是B，也不是C，是D。", "D"),
    (TESTS, "并不是A，应该是D", "D"),
    (TESTS, "不应选A，应选D。", "D"),
    (TESTS, "不能选A，应选D。", "D"),
    (TESTS, "不是腹水，而是肝活检。", "D"),
    (TESTS, "答案是A？不，是D。", "D"),
    (TESTS, "答案A是错误的，D才是正确答案。", "D"),
    (TESTS, "虽然A看似正确，但正确答案是D。", "D"),
    (TESTS, "A和B都不对，D对。", "D"),
    (TESTS, "答案：D. 肝活检\n解析：选A的同学可能误以为腹水……", "D"),
    (TESTS, "答案：D\n解析：本题考查…A项…B项…故本题选D。", "D"),
    (TESTS, "D\nD\nD\nD", "D"),
    (TESTS, "答案是D。答案是D。答案是D", "D"),
    (TESTS, "C，D", "CD"),
    (TESTS, "d.", "D"),
    (TESTS, "(d)", "D"),
    (TESTS, "选d", "D"),
    (TESTS, "Option d", "D"),
    (TESTS, "<答>：D", "D"),
    (TESTS, "D</s>", "D"),
    (TESTS, "答案:D</s>", "D"),
    (TESTS, "$\\boxed{\\text{D}}$", "D"),
    (TESTS, "这个问题的答案可能是D。", "D"),
    (TESTS, "答案很可能是D", "D"),
    (TESTS, "大概是D吧", "D"),
    (TESTS, "金标准是肝活检。", "D"),
    (TESTS, "确诊需要做肝活检，而不是B超检查。", "D"),
    (
        DRUGS,
        "肝素过量可用鱼精蛋白拮抗；华法林过量可用维生素K拮抗。题目问的是可用鱼精蛋白拮抗的药物，所以应该选择C选项。",
        "C",
    ),
    (
        DRUGS,
        "首先，阿司匹林是抗血小板药，氯吡格雷也是抗血小板药，均不符合。华法林起效慢。肝素起效快，可皮下或静脉注射。因此，最适合的药物是肝素，即选项C。",
        "C",
    ),
    (
        DRUGS,
        "解析：本题考查抗凝药。A项为抗血小板药，D项为抗血小板药，B项为维生素K拮抗剂，E项为Xa因子抑制剂。故本题答案为C。",
        "C",
    ),
    (DRUGS, "选C\n肝素可加速抗凝血酶III对凝血因子的灭活。A、D为抗血小板药", "C"),
    (DRUGS, "本题选择C，肝素。A. 阿司匹林抑制COX-1；B. 华法林拮抗维生素K。", "C"),
    (
        DRUGS,
        "答案：C。解析：A选项阿司匹林是抗血小板药，故A错误；B选项华法林口服有效，故B错误；C选项肝素正确；因此本题选C。",
        "C",
    ),
    (DRUGS, "根据题意，需选用起效迅速的抗凝药，华法林起效慢，不宜选用；肝素为首选。", "C"),
    (DRUGS, "肝素。", "C"),
    (DRUGS, "应为肝素（C）。", "C"),
    (DRUGS, "我觉得是C选项，肝素。", "C"),
    (DRUGS, "C选项肝素", "C"),
    (DRUGS, "Based on the above analysis, the answer is C. 肝素.", "C"),
    (
        DRUGS,
        "Let's think step by step. Option A is an antiplatelet drug, so it is not correct. Option B acts slowly. Option C acts quickly. Therefore, the answer is C.",
        "C",
    ),
    (DRUGS, "The correct answer is **C. Heparin**.", "C"),
    (DRUGS, "**答案：C**\n\n**解析：** 阿司匹林……", "C"),
    (DRUGS, "### 答案\nC", "C"),
    (DRUGS, "### 答案\n\n**C. 肝素**\n\n### 解析\n- A：抗血小板\n- B：起效慢", "C"),
    (DRUGS, "正确答案：**C（肝素）**", "C"),
    (DRUGS, "因此，正确答案是 **C. 肝素**。", "C"),
    (DRUGS, "这道题的正确答案是C，而非B。", "C"),
    (DRUGS, "B看起来对，其实应该选C。", "C"),
    (DRUGS, "有人认为选B，但实际上C才是正确选项。", "C"),
    (DRUGS, "不是B。是C。", "C"),
    (DRUGS, "答案为B？不，应为C。", "C"),
    (DRUGS, "初步判断为B，但进一步分析后应为C。", "C"),
    (DRUGS, "A：抗血小板；B：起效慢；C：起效快；D：抗血小板；E：口服。答案C", "C"),
    (DRUGS, "综上，肝素最符合题意。", "C"),
    (DRUGS, "肝素符合题干描述。", "C"),
    (DRUGS, "只有肝素符合。", "C"),
    (DRUGS, "患者需要立即抗凝，故应给予肝素治疗。", "C"),
    (DRUGS, "患者INR 2.5，血型A型，维生素K缺乏，使用肝素。", "C"),
    (DRUGS, "The answer is C because A and B are antiplatelet agents.", "C"),
    (DRUGS, "A is an antiplatelet. B is slow. C.", "C"),
    (DRUGS, "It should be C.", "C"),
    (DRUGS, "C is right.", "C"),
    (DRUGS, "The right choice: C", "C"),
    (DRUGS, "Correct answer: (C) 肝素", "C"),
    (DRUGS, "I'd go with C.", "C"),
    (DRUGS, "I pick C", "C"),
    (DRUGS, "Among the options, C fits best.", "C"),
    (DRUGS, "None of A, B, D or E acts fast, so C is the answer.", "C"),
    (DRUGS, "选择：C", "C"),
    (DRUGS, "选项：C", "C"),
    (DRUGS, "答：C", "C"),
    (DRUGS, "答：选C。", "C"),
    (DRUGS, "【C】", "C"),
    (DRUGS, "C．肝素", "C"),
    (DRUGS, "C 、肝素", "C"),
    (DRUGS, "<C>", "C"),
    (DRUGS, "“C”", "C"),
    (DRUGS, "C,", "C"),
    (DRUGS, "C!", "C"),
    (DRUGS, "答案是 C 。", "C"),
    (DRUGS, "答案: c) 肝素", "C"),
    (DRUGS, "正确答案应是Ｃ", "C"),
    (DRUGS, "此题答案选C", "C"),
    (DRUGS, "答案应该选择C项", "C"),
    (DRUGS, "答案——C", "C"),
    (DRUGS, "答案→C", "C"),
    (DRUGS, "答案是：“C”", "C"),
    (DRUGS, "答案就是C啦", "C"),
    (DRUGS, "正确答案C", "C"),
    (DRUGS, "本题正确答案为选项C", "C"),
    (DRUGS, "最终答案：$C$", "C"),
    (DRUGS, "因此选用肝素。", "C"),
    (DRUGS, "因此，应选用肝素。", "C"),
    (DRUGS, "所以应该用肝素", "C"),
    (DRUGS, "应首选肝素", "C"),
    (DRUGS, "应选阿司匹林，而不是吗啡", "A"),
    (DRUGS, "应选肝素拮抗吗啡。", "C"),
    (ANTIDOTES, "吗啡中毒可用纳洛酮解救。", "A"),
    (
        ANTIDOTES,
        "吗啡为阿片受体激动药，中毒时应使用阿片受体拮抗剂。纳洛酮为阿片受体拮抗剂，氟马西尼拮抗苯二氮䓬类。故答案为纳洛酮。",
        "A",
    ),
    (ANTIDOTES, "纳洛酮是阿片受体拮抗剂，可用于吗啡中毒的解救。因此答案是A。", "A"),
    (ANTIDOTES, "鱼精蛋白用于肝素过量，维生素K用于华法林过量，因此答案是纳洛酮。", "A"),
    (ANTIDOTES, "维生素K。", "E"),
    (ANTIDOTES, "应选择的药物是纳洛酮。", "A"),
    (ANTIDOTES, "可用于解救的药物是纳洛酮。", "A"),
    (ANTIDOTES, "A是对的", "A"),
    (ANTIDOTES, "A项符合。", "A"),
    (ANTIDOTES, "A 纳洛酮", "A"),
    (ANTIDOTES, "A-纳洛酮", "A"),
    (ANTIDOTES, "选项A，纳洛酮", "A"),
    (ANTIDOTES, "我的答案是：A", "A"),
    (ANTIDOTES, "答案是A选项：纳洛酮，它能竞争性拮抗阿片受体。", "A"),
    (ANTIDOTES, "综合考虑，A更合适。", "A"),
    (ANTIDOTES, "A更好", "A"),
    (ANTIDOTES, "最佳选项：A", "A"),
    (ANTIDOTES, "A才对", "A"),
    (ANTIDOTES, "题干提示吗啡中毒→阿片受体拮抗剂→纳洛酮→选A", "A"),
    (ANTIDOTES, "Answer: A) 纳洛酮", "A"),
    (ANTIDOTES, "My answer: A", "A"),
    (ANTIDOTES, "The antidote is naloxone, option A.", "A"),
    (ANTIDOTES, "Option A: 纳洛酮", "A"),
    (ANTIDOTES, "It is A.", "A"),
    (ANTIDOTES, "So, A.", "A"),
    (ANTIDOTES, "A, because naloxone is an opioid antagonist.", "A"),
    (ANTIDOTES, "首先排除B（用于肝素）、C（用于安定类）、D（用于对乙酰氨基酚）、E（用于华法林），剩下A。", "A"),
    (ANTIDOTES, "排除法：B、C、D、E均不对，所以只能选A。", "A"),
    (
        ANTIDOTES,
        "用户问的是吗啡中毒。A. 纳洛酮：正确，是阿片受体拮抗剂。B. 鱼精蛋白：错误。C. 氟马西尼：错误。D. 乙酰半胱氨酸：错误。E. 维生素K：错误。",
        "A",
    ),
    (ANTIDOTES, "A. 纳洛酮 √", "A"),
    (ANTIDOTES, "（A）", "A"),
    (ANTIDOTES, "A）", "A"),
    (ANTIDOTES, "A\n\n", "A"),
    (ANTIDOTES, "A。纳洛酮", "A"),
    (ANTIDOTES, "a)", "A"),
    (ANTIDOTES, "本题选项A正确，选项B错误，选项C错误。", "A"),
    (ANTIDOTES, "选择题答案：A", "A"),
    (ANTIDOTES, "第1题：A", "A"),
    (ANTIDOTES, "1. A", "A"),
    (ANTIDOTES, "1、A", "A"),
    (ANTIDOTES, "答案如下：A", "A"),
    (ANTIDOTES, "答案如下：\nA. 纳洛酮", "A"),
    (ANTIDOTES, "答案见下：A", "A"),
    (ANTIDOTES, "正确的答案选项是：A", "A"),
    (ANTIDOTES, "故本题应选择A。", "A"),
    (ANTIDOTES, "因而选A", "A"),
    (ANTIDOTES, "那么答案就是A。", "A"),
    (ANTIDOTES, "本题的答案是（A）纳洛酮", "A"),
    (ANTIDOTES, "答案为：A。纳洛酮", "A"),
    (ANTIDOTES, "参考答案】A", "A"),
    (ANTIDOTES, "答案是A（纳洛酮）而不是B（鱼精蛋白）。", "A"),
    (ANTIDOTES, "不是鱼精蛋白，是纳洛酮。", "A"),
    (ANTIDOTES, "纳洛酮（A选项）", "A"),
    (ANTIDOTES, "纳洛酮，选A。", "A"),
    (ANTIDOTES, "A. 纳洛酮：解救阿片\nB. 鱼精蛋白：解救肝素\n\nA", "A"),
    (ANTIDOTES, "应用纳洛酮", "A"),
    # several letters where one is asked for: all are kept, so the score counts a wrong answer
    (TESTS, "答案是A和C。", "AC"),
    (TESTS, "选AC", "AC"),
    # a label and a text that disagree: the letter counts
    (TESTS, "答案是A. 血电解质", "A"),
]

MULTIPLE = [
    (TESTS, "答案：ACE", "ACE"),
    (TESTS, "答案：ace", "ACE"),
    (TESTS, "答案：CAE", "ACE"),
    (TESTS, "A、C和E", "ACE"),
    (TESTS, "A,C,E", "ACE"),
    (TESTS, "A C E", "ACE"),
    (TESTS, "Ａ，Ｃ，Ｅ", "ACE"),
    (TESTS, "选A、C、E三项。", "ACE"),
    (TESTS, "正确选项为A、C以及E", "ACE"),
    (TESTS, "选项A、选项C和选项E都正确。", "ACE"),
    (TESTS, "正确答案是腹水、血电解质和肝活检。", "ACD"),
    (TESTS, "A（腹水）、C（血电解质）", "AC"),
    (TESTS, "答案是A. 腹水、C. 血电解质。B错误。", "AC"),
    (TESTS, "答案是：\nA. 腹水\nC. 血电解质\n\nB项与本病无关。", "AC"),
    (TESTS, "A. 腹水\nC. 血电解质", "AC"),
    (TESTS, "答案是AC，B错误。", "AC"),
    (TESTS, "答案为A、B、D，C不正确", "ABD"),
    (TESTS, "A正确。B正确。C错误。D正确。E错误。", "ABD"),
    (TESTS, "A项正确，B项错误，D项正确", "AD"),
    (TESTS, "答案是A-D", "ABCD"),
    (TESTS, "A至D均正确，故选A至D", "ABCD"),
    (TESTS, "以上都对", "ABCDE"),
    (TESTS, "除E外均正确，因此选ABCD。", "ABCD"),
    (TESTS, "腹水、清蛋白。", "AB"),
    (TESTS, "答案是C", "C"),
    (ENGLISH, "The correct answers are A, C and D.", "ACD"),
    (ENGLISH, "Answer: A, C", "AC"),
    (ENGLISH, "Aspirin and insulin", "AD"),
    (ALL_IN_ONE, "以上都是", "D"),
    (TESTS, "答案：A、B、C、E。", "ABCE"),
    (TESTS, "选ABE", "ABE"),
    (TESTS, "ABCE", "ABCE"),
    (TESTS, "A，B，E", "ABE"),
    (TESTS, "A B E", "ABE"),
    (TESTS, "正确答案是A、B和E。", "ABE"),
    (TESTS, "答案是A、B、E，不包括C和D。", "ABE"),
    (TESTS, "A选项、B选项和E选项正确", "ABE"),
    (TESTS, "A. 腹水 B. 清蛋白 E. B超检查", "ABE"),
    (TESTS, "答案是腹水（A）、清蛋白（B）和B超检查（E）", "ABE"),
    (TESTS, "正确的有：A、B、E", "ABE"),
    (TESTS, "正确的是ABE，C和D不对", "ABE"),
    (TESTS, "应选：A，B，E。", "ABE"),
    (TESTS, "本题应选ABE三项", "ABE"),
    (TESTS, "1. A\n2. B\n3. E", "ABE"),
    (TESTS, "- A\n- B\n- E", "ABE"),
    (TESTS, "A\nB\nE", "ABE"),
    (TESTS, "A. 腹水；B. 清蛋白；E. B超检查", "ABE"),
    (TESTS, "A、B、E符合题意", "ABE"),
    (TESTS, "A正确，因为…。B正确，因为…。C错误。D错误。E正确。因此答案为ABE。", "ABE"),
    (TESTS, "A、B、E都是正确答案。", "ABE"),
    (TESTS, "The correct options are A, B, and E.", "ABE"),
    (TESTS, "A, B and E are correct.", "ABE"),
    (TESTS, "A and B", "AB"),
    (TESTS, "Both A and B are correct", "AB"),
    (TESTS, "全选", "ABCDE"),
    (TESTS, "ABCDE", "ABCDE"),
    (TESTS, "答案：AB E", "ABE"),
    (TESTS, "答案是A，B，以及E", "ABE"),
    (TESTS, "答案是a,b,e", "ABE"),
    (TESTS, "选A，选B，选E", "ABE"),
    (TESTS, "选A、选B、选E", "ABE"),
    (TESTS, "选A和C，不选B、D、E。", "AC"),
    (TESTS, "A对B对C错D错E对", "ABE"),
    (TESTS, "A√ B√ C× D× E√", "ABE"),
    (DRUGS, "本题为多选题，A、D为抗血小板药，B、C、E为抗凝药，因此答案是BCE。", "BCE"),
    (DRUGS, "B、C、E均为抗凝药，故选B、C、E。", "BCE"),
    (DRUGS, "抗凝药包括华法林、肝素和利伐沙班。", "BCE"),
    (DRUGS, "正确答案：B. 华法林，C. 肝素，E. 利伐沙班", "BCE"),
    (DRUGS, "**答案：B、C、E**", "BCE"),
    (DRUGS, "答案：\n- B. 华法林\n- C. 肝素\n- E. 利伐沙班\n\n解析：A、D为抗血小板药。", "BCE"),
    (DRUGS, "答案是：B（华法林）、C（肝素）、E（利伐沙班）。", "BCE"),
    (DRUGS, "BCE。A、D是抗血小板药。", "BCE"),
    (DRUGS, "B,C,E", "BCE"),
    (DRUGS, "B/C/E", "BCE"),
    (DRUGS, "B C E 三项正确", "BCE"),
    (DRUGS, "B和C和E", "BCE"),
    (DRUGS, "选BC和E", "BCE"),
    (DRUGS, "应选择B、C和E选项", "BCE"),
    (DRUGS, "The answer is B, C, and E.", "BCE"),
    (DRUGS, "B, C & E", "BCE"),
    (DRUGS, "BC、E", "BCE"),
    (DRUGS, "A错，B对，C对，D错，E对", "BCE"),
    (DRUGS, "A. 错误。B. 正确。C. 正确。D. 错误。E. 正确。", "BCE"),
    (DRUGS, "A：×\nB：√\nC：√\nD：×\nE：√", "BCE"),
    (DRUGS, "不选A和D，选B、C、E", "BCE"),
    (DRUGS, "排除A、D，答案为BCE", "BCE"),
    (DRUGS, "答案是BCE，不是AD。", "BCE"),
    (DRUGS, "华法林、肝素、利伐沙班", "BCE"),
    (DRUGS, "答案是华法林、肝素以及利伐沙班，它们都是抗凝药。", "BCE"),
    (DRUGS, "B选项、C选项、E选项", "BCE"),
    (DRUGS, "所有选项都正确", "ABCDE"),
    (DRUGS, "答案是A、B、C、D、E。", "ABCDE"),
    (DRUGS, "答案：A、B、C、D、E全选", "ABCDE"),
    (DRUGS, "ABCDE都是", "ABCDE"),
]

NO_ANSWER = [
    (TESTS, ""),
    (TESTS, "   \n"),
    (TESTS, "我不知道。"),
    (TESTS, "这道题没有给出足够的信息，无法判断。"),
    (TESTS, "不选B"),
    (TESTS, "B错误。"),
    (TESTS, "答案不是A。"),
    (TESTS, "答案是A或C。"),
    (TESTS, "可能是A，也可能是C。"),
    (TESTS, "答案是A吗？"),
    (TESTS, "腹水和清蛋白都有意义。"),
    (TESTS, "A. 腹水\nB. 清蛋白\nC. 血电解质\nD. 肝活检\nE. B超检查"),
    (TESTS, "A. 腹水：常见\nB. 清蛋白：下降\nC. 血电解质：无特异性"),
    (TESTS, "<think>应选C"),
    (TESTS, "维生素C和C反应蛋白"),
    (ENGLISH, "A patient came to us."),
    (ENGLISH, "I am not sure."),
    (ENGLISH, "The answer depends on aspirin dosage and on insulin."),
    (NUMBERS, "155"),
    (TESTS, "A、B、D、E均与肝功能有关，只有C无关。"),
    (TESTS, "没有正确答案"),
    (TESTS, "以上都不对"),
    (TESTS, "无法从选项中选择"),
    (TESTS, "A或D"),
    (TESTS, "肝活检是诊断肝硬化的金标准，腹水、清蛋白仅供参考。"),
    (TESTS, "除了C和D以外都正确"),
    (DRUGS, "抱歉，我无法回答。"),
    (DRUGS, "请咨询医生。"),
    (DRUGS, "A选项是阿司匹林，B选项是华法林。"),
    (DRUGS, "阿司匹林、华法林、肝素都是常用药。"),
    (DRUGS, "可以选择阿司匹林或华法林。"),
    (DRUGS, "答案：无"),
    (DRUGS, "answer:"),
    (DRUGS, "C or D"),
    (DRUGS, "ccc"),
    (ANTIDOTES, "A：纳洛酮。B：鱼精蛋白。"),
    (ANTIDOTES, "Obviously B is for heparin and E for warfarin. D is not."),
    (ANTIDOTES, "应该选A吧？"),
    (ANTIDOTES, "A. 纳洛酮：解救阿片\nB. 鱼精蛋白：解救肝素\nC."),
]

NEGATIVE = [
    ("下列说法错误的是", "A正确，B正确，C错误，D正确。", "C"),
    ("下列不属于肝功能指标的是", "不属于肝功能指标的是C。", "C"),
    ("下列哪项除外", "错误的是血电解质。正确的是腹水、清蛋白。", "C"),
    ("Which of the following is NOT a test?", "A is correct. B is correct. C is incorrect.", "C"),
    ("说法不正确的是", "答案是C。C错误，因为血电解质无特异性。", "C"),
    (
        "关于抗凝药物的说法，错误的是",
        "题目要求选错误的一项。A正确，B正确，D正确，E正确，而C的说法是错误的，因此答案是C。",
        "C",
    ),
    ("关于抗凝药物的说法，错误的是", "A、B、D、E的说法都正确，C的说法错误。", "C"),
    ("关于抗凝药物的说法，错误的是", "错误的说法是C。", "C"),
    ("关于抗凝药物的说法，错误的是", "C项错误，血电解质不能口服。", "C"),
    ("关于抗凝药物的说法，错误的是", "选项C不正确，因为血电解质不能口服。", "C"),
    ("关于抗凝药物的说法，错误的是", "以上说法中，不正确的是选项C。", "C"),
    ("关于抗凝药物的说法，错误的是", "血电解质可以口服，这一说法是错误的。因此选C", "C"),
    ("患者不能进食，最合适的是", "A错误，B错误，C正确。", "C"),
]


@pytest.mark.parametrize(("option", "reply", "expected"), SINGLE)
def test_single_answer_is_read(option, reply, expected):
    assert parse_answer(reply, "对诊断最有意义的是", option) == expected


@pytest.mark.parametrize(("option", "reply", "expected"), MULTIPLE)
def test_multiple_answer_is_read(option, reply, expected):
    assert parse_answer(reply, "对诊断有意义的有", option, multiple=True) == expected


@pytest.mark.parametrize(("option", "reply"), NO_ANSWER)
@pytest.mark.parametrize("question", ["对诊断最有意义的是", "Which test is best?"])
def test_reply_without_answer_is_none_and_never_a_letter(option, reply, question):
    assert parse_answer(reply, question, option) is None


@pytest.mark.parametrize(("question", "reply", "expected"), NEGATIVE)
def test_question_for_the_wrong_option_turns_judgements_round(question, reply, expected):
    assert parse_answer(reply, question, TESTS) == expected


def test_echo_of_the_question_is_no_answer():
    prompt = "请回答下面选择题。\n[最佳选择题]对诊断最有意义的是\n" + "\n".join(f"{k}. {v}" for k, v in TESTS.items())
    assert parse_answer(prompt, "对诊断最有意义的是", TESTS) is None
    assert parse_answer(prompt + "\n答案：D", "对诊断最有意义的是", TESTS) == "D"
    assert parse_answer(" ".join(f"{k}. {v}" for k, v in TESTS.items()), "有意义的有", TESTS, multiple=True) is None


def test_text_after_a_next_question_is_not_read():
    assert parse_answer("答案是D。\n<问>：另一题\n<答>：答案是A。", "…", TESTS) == "D"


LABELLED = Path(__file__).with_name("labelled_replies.jsonl")


def read_labelled():
    return [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]


RISKS = {"A": "高盐饮食", "B": "规律运动", "C": "肥胖", "D": "长期饮酒"}
DECISIONS = {"A": "yes", "B": "no", "C": "maybe"}


@pytest.mark.parametrize(
    ("option", "multiple", "reply", "expected"),
    [
        (RISKS, True, "(A)(C)(D)", "ACD"),
        (RISKS, True, "答案：【A】【C】", "AC"),
        (RISKS, True, "A.C.D", "ACD"),
        (RISKS, True, "答案：A。C。D。", "ACD"),
        (RISKS, True, "答案：A | C", "AC"),
        (RISKS, True, "A-C-D", "ACD"),
        (RISKS, True, r"\boxed{A}, $\boxed{\text{C}}$", "AC"),
        (RISKS, False, r"\boxed{A}\boxed{A}", "A"),
        (RISKS, True, "A 高盐饮食\nC 肥胖\nD 长期饮酒", "ACD"),
        (RISKS, True, "A: 是\nB: 否\nC: 是\nD: 是", "ACD"),
        (RISKS, True, "### 答案\n\n- **A. 高盐饮食**：使血压升高\n- **C. 肥胖**：加重心脏负担，B则相反\n\n解析\n\n- B. 规律运动：有益", "AC"),
        (RISKS, True, "答案：\nA. 高盐饮食：升压，正确\nB. 规律运动：降压，错误\nC. 肥胖：升压，正确", "AC"),
        (RISKS, False, "答案:A 高盐饮食；B 规律运动降低血压", "A"),
        (RISKS, True, "答案：A高盐饮食C肥胖D长期饮酒。", "ACD"),
        (RISKS, False, "答案：A高盐饮食C肥胖与此无关。", "A"),
        (TESTS, False, "正确选项：D\n\n错误选项：A、B、C、E", "D"),
        (DECISIONS, False, "Maybe. The study shows mixed results with no clear benefit.", "C"),
        (DECISIONS, False, "No, the groups did not differ. Maybe a larger trial would tell.", "B"),
        (DECISIONS, False, "Yes. There was no change in the control group.", "A"),
        (DECISIONS, False, "There is no clear answer.", None),
        (DECISIONS, False, "The data allow no verdict, so the answer is maybe.", "C"),
        (TESTS, False, "答案是B。不对，应该是D。", "D"),
        (TESTS, False, "The answer is B. Wait, actually it should be D.", "D"),
        (TESTS, False, "So the answer is D.\n\nQuestion: Which is raised?\nA. x\nAnswer: B", "D"),
        (TESTS, False, "Let me restate it.\nQuestion: Which test proves cirrhosis?\nThe answer is D.", "D"),
        (TESTS, False, "A是腹水，B是清蛋白，C是血电解质。", None),
    ],
)  # fmt: skip
def test_lists_decisions_and_second_thoughts_are_read(option, multiple, reply, expected):
    assert parse_answer(reply, "", option, multiple=multiple) == expected


def test_labelled_replies_are_read_as_a_person_reads_them():
    """Replies in the styles of today's models, written and labelled before the rules that read them."""
    replies = read_labelled()
    assert len(replies) >= 400 and sum(reply["adversarial"] for reply in replies) >= 80
    assert len({(reply["question"], reply["reply"]) for reply in replies}) == len(replies)
    misread = [
        (r["reply"], r["answer"], got)
        for r in replies
        if (got := parse_answer(r["reply"], r["question"], r["option"], multiple=r["multiple"])) != r["answer"]
    ]
    assert len(misread) <= 0.02 * len(replies), misread
    # What is misread becomes no answer rather than a wrong letter.
    assert sum(got is not None for _, _, got in misread) <= 0.003 * len(replies), misread


_WORDS = """答案 是 选 不 而 正确 错误 、 ， 。 ： ( ) （ ? 腹水 清蛋白 血电解质 not coli | --- ✅ ❌ √ 除 外 均 其余 或 只有 以上都是 全部 － — ~
E.coli the_answer_is all_except <think> </think> <answer> </answer> \\boxed{ } { "answer": <|channel|>final<|message|> <问>： </s>"""
_PIECES = st.sampled_from(
    [*"ABCDEabcdeＡＢ \n\x00\ufffd", "A" * 300, *(word.replace("_", " ") for word in _WORDS.split())]
)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(_PIECES, max_size=30).map("".join)), st.booleans(), st.booleans())
def test_any_reply_gives_sorted_option_letters_or_none(reply, multiple, negative):
    question = "下列错误的是" if negative else "下列正确的是"
    for option in (TESTS, ALL_IN_ONE, {"A": "(", "B": "[", "C": "\\"}, {"A": "", "B": "乙"}, PAIRS):
        letters = parse_answer(reply, question, option, multiple=multiple)
        assert letters is None or (letters and letters == "".join(sorted(set(letters) & set(option))))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"published replies are absent: {DATA}")
@pytest.mark.parametrize("name", ["GPT4.json", "HuatuoGPT2-7B.json"])
def test_published_free_form_replies_name_no_foreign_option_and_hide_no_answer(name):
    foreign = dict(zip("ABCDE", ("紫杉醇", "地高辛", "华法林", "氯氮平", "秋水仙碱"), strict=True))
    replies = [record["model_output"] for record in json.loads((DATA / name).read_text(encoding="utf-8"))]
    assert len(replies) == 100
    assert [parse_answer(reply, "首选药物是", foreign) for reply in replies] == [None] * 100
    for statement in ("因此答案是华法林。", "综上，选C。", "C"):
        assert [parse_answer(f"{reply}\n{statement}", "首选药物是", foreign) for reply in replies] == ["C"] * 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["腹水与清蛋白相比，", "A B C D ", "其余都是", "A：可提示。", "除A外均是，", "- A. 腹水\n"]
)
@pytest.mark.timeout(120)  # linear time takes about a second
def test_reply_of_60k_characters_without_a_statement_is_read_in_linear_time(piece):
    for multiple in (False, True):
        letters = parse_answer(piece * (60_000 // len(piece)), "有意义的是", TESTS, multiple=multiple)
        assert letters is None or set(letters) <= set(TESTS)


@pytest.mark.slow
@pytest.mark.timeout(120)  # linear time takes about a second; this only ends a reader that has become quadratic
@pytest.mark.parametrize("piece", ["答案是A或", "A B C D ", "a , , ", "不是A，", "A\n", "选", "A"])
def test_reply_of_60k_characters_is_read_in_linear_time(piece):
    assert parse_answer(piece * (60_000 // len(piece)) + "。\n答案是C", "…", TESTS, multiple=True) == "C"
