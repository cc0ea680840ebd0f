#include "worker/prep/records.h"

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Json Parse(absl::string_view text) {
  absl::StatusOr<Json> json = ParseJson(text, "test");
  EXPECT_THAT(json, IsOk());
  return json.ok() ? *std::move(json) : Json();
}

absl::StatusOr<Record> Make(absl::string_view text, DatasetFormat format, bool chat = false) {
  RecordOptions options;
  options.format = format;
  options.use_chat_template = chat;
  return MakeRecord(Parse(text), options);
}

TEST(RecordsTest, DetectsTheFormatFromColumns) {
  const std::pair<const char*, DatasetFormat> cases[] = {
      {R"({"messages": []})", DatasetFormat::kChat},
      {R"({"conversations": [], "id": 1})", DatasetFormat::kChat},
      {R"({"prompt": "", "completion": ""})", DatasetFormat::kPromptCompletion},
      {R"({"prompt": "", "answer": ""})", DatasetFormat::kPromptCompletion},
      {R"({"instruction": "", "input": "", "output": ""})", DatasetFormat::kAlpaca},
      {R"({"text": ""})", DatasetFormat::kText},
      {R"({"ctx": "", "endings": [], "label": 0})", DatasetFormat::kHellaSwag},
      {R"({"context": "", "question": "", "answers": {}})", DatasetFormat::kSquad},
      {R"({"messages": [], "text": ""})", DatasetFormat::kChat},
  };
  for (const auto& [row, format] : cases) {
    const auto detected = DetectFormat(Parse(row));
    ASSERT_THAT(detected, IsOk()) << row;
    EXPECT_EQ(*detected, format) << row;
  }
  EXPECT_THAT(DetectFormat(Parse(R"({"messages": null, "q": 1})")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("messages, q")));
}

TEST(RecordsTest, MessagesAreNormalised) {
  const auto record = Make(
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"], "name": null},
          {"role": "assistant", "content": null, "weight": 0, "reasoning_content": "r",
           "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}},
                          {"id": "k", "function": {"name": "g", "arguments": "not json"}}]},
          {"role": "tool", "content": "1", "tool_call_id": "k"},
          {"role": "assistant", "content": "A", "train": true, "tool_calls": []}]})",
      DatasetFormat::kChat);
  ASSERT_THAT(record, IsOk());
  EXPECT_EQ(
      DumpJson(record->messages),
      R"([{"role":"user","content":"a b"},)"
      R"({"role":"assistant","content":"","reasoning_content":"r","tool_calls":[)"
      R"({"id":"call_0","type":"function","function":{"name":"f","arguments":{"x":1}}},)"
      R"({"id":"k","type":"function","function":{"name":"g","arguments":"not json"}}]},)"
      R"({"role":"tool","content":"1","tool_call_id":"k"},{"role":"assistant","content":"A"}])");
  EXPECT_THAT(record->learn, ElementsAre(false, true));
}

TEST(RecordsTest, ToolsMayBeTextOfJson) {
  const auto record =
      Make(R"({"messages": [{"role": "user", "content": "Q"}], "tools": "[{\"name\": \"f\"}]"})",
           DatasetFormat::kChat);
  ASSERT_THAT(record, IsOk());
  EXPECT_EQ(DumpJson(record->tools), R"([{"name":"f"}])");
}

TEST(RecordsTest, ArgumentsBecomePythonsJsonText) {
  Json messages = Parse(
      R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f",
          "arguments": {"a": [1, 2.5, null], "ü": "\n"}}}]}])");
  EXPECT_TRUE(ArgumentsToStrings(&messages));
  EXPECT_EQ(messages[0]["tool_calls"][0]["function"]["arguments"],
            R"({"a": [1, 2.5, null], "\u00fc": "\n"})");
  EXPECT_FALSE(ArgumentsToStrings(&messages));
}

TEST(RecordsTest, PromptAndCompletionKeepTheirBorder) {
  const auto record =
      Make(R"({"prompt": "zwölf ", "completion": "x"})", DatasetFormat::kPromptCompletion);
  ASSERT_THAT(record, IsOk());
  EXPECT_EQ(record->text, "zwölf x");
  EXPECT_EQ(record->prompt_bytes, 7u);
  EXPECT_THAT(Make(R"({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]})",
                   DatasetFormat::kPromptCompletion),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("both")));
}

TEST(RecordsTest, AlpacaWithoutChatTemplateGetsStanfordsFrame) {
  const auto record =
      Make(R"({"instruction": "Add.", "input": "1 2", "output": "3"})", DatasetFormat::kAlpaca);
  ASSERT_THAT(record, IsOk());
  EXPECT_THAT(record->text,
              HasSubstr("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3"));
  EXPECT_EQ(record->text.substr(record->prompt_bytes), "3");
  const auto with_history = Make(R"({"instruction": "q", "output": "a", "history": [["u", "v"]]})",
                                 DatasetFormat::kAlpaca,
                                 /*chat=*/true);
  ASSERT_THAT(with_history, IsOk());
  EXPECT_EQ(with_history->messages.size(), 4u);
}

TEST(RecordsTest, HellaSwagLabelsMustPointAtAnEnding) {
  const char* rows[] = {R"({"ctx": "c", "endings": ["a", "b"], "label": "2"})",
                        R"({"ctx": "c", "endings": ["a", "b"], "label": -1})",
                        R"({"ctx": "c", "endings": ["a", "b"], "label": ""})",
                        R"({"ctx": "c", "endings": ["a", 5], "label": 0})",
                        R"({"ctx": "c", "endings": ["a", "b"]})",
                        R"({"endings": ["a", "b"], "label": 0})"};
  for (const char* row : rows) {
    EXPECT_THAT(Make(row, DatasetFormat::kHellaSwag), StatusIs(absl::StatusCode::kInvalidArgument))
        << row;
  }
}

}  // namespace
}  // namespace switchyard
