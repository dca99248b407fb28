"""The answer parser on hand-written replies, Chinese and English."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_huatuo.evaluate.parse import parse_answer

TESTS = {"A": "腹水", "B": "清蛋白", "C": "血电解质", "D": "肝活检", "E": "B超检查"}
NESTED = {"A": "清蛋白", "B": "血清蛋白", "C": "血清", "D": "血清蛋白电泳", "E": "前清蛋白"}
VITAMINS = {"A": "维生素A", "B": "维生素B", "C": "维生素C", "D": "维生素D"}
ENGLISH = {"A": "Aspirin", "B": "Vitamin C", "C": "Serum electrolytes", "D": "Insulin", "E": "All of the above"}
NUMBERS = {"A": "5", "B": "15", "C": "0.5", "D": "5-10"}
ALL_IN_ONE = {"A": "发热", "B": "咳嗽", "C": "胸痛", "D": "以上都是"}
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
]

NEGATIVE = [
    ("下列说法错误的是", "A正确，B正确，C错误，D正确。", "C"),
    ("下列不属于肝功能指标的是", "不属于肝功能指标的是C。", "C"),
    ("下列哪项除外", "错误的是血电解质。正确的是腹水、清蛋白。", "C"),
    ("Which of the following is NOT a test?", "A is correct. B is correct. C is incorrect.", "C"),
    ("说法不正确的是", "答案是C。C错误，因为血电解质无特异性。", "C"),
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


@given(
    st.text(
        alphabet="ABCDEabcde答案是选不而正确错误、，。：和或()（）\n 腹水清蛋白血电解质is the answer not", max_size=60
    )
)
def test_result_is_always_sorted_option_letters_or_none(reply):
    for multiple in (False, True):
        letters = parse_answer(reply, "下列正确的是", TESTS, multiple=multiple)
        assert letters is None or (letters and letters == "".join(sorted(set(letters) & set(TESTS))))


@pytest.mark.timeout(60)  # linear time takes less than a second; this only ends a reader that has become quadratic
@pytest.mark.parametrize("piece", ["答案是A或", "A B C D ", "a , , ", "不是A，", "A\n", "选", "A"])
def test_reply_of_200k_characters_is_read_in_linear_time(piece):
    assert parse_answer(piece * (200_000 // len(piece)) + "。\n答案是C", "…", TESTS, multiple=True) == "C"
