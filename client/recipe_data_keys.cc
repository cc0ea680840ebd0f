// Keys of data sets, packing and loaders.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/recipe_keys.h"

namespace switchyard {
namespace {

constexpr auto kUsed = Verdict::kUsed;
constexpr auto kIgnored = Verdict::kIgnored;
constexpr auto kRefused = Verdict::kRefused;
using T = ValueType;

void Paths(Setting& s) {
  for (const std::string& path : s.paths) s.dataset->add_paths(path);
}
void LimitRows(Setting& s) { s.dataset->set_limit_rows(s.integer); }
void SeqLength(Setting& s) { s.draft.seq_lengths[s.key] = s.integer; }
void RefuseTrue(Setting& s) {
  if (s.flag)
    s.Refuse(s.report.note);
  else
    s.Ignore("false is what we do");
}
void ChatTemplate(Setting& s) {
  // A path when there is such a file, else the template itself.
  const std::string path =
      s.text[0] == '/' ? s.text : absl::StrCat(s.draft.options.folder, "/", s.text);
  const bool inline_text = absl::StrContains(s.text, "{{") || absl::StrContains(s.text, "{%");
  if (!inline_text && !s.draft.options.exists(path)) {
    s.Refuse(absl::StrCat("no file ", path, ", and no template: it has neither {{ nor {%"));
    return;
  }
  s.draft.chat_templates[s.key] = inline_text ? s.text : path;
  s.draft.spec.mutable_data()->set_chat_template(inline_text ? s.text : path);
  // Column-mapped and SQuAD rows are plain text unless a template is asked for.
  if (s.dataset != nullptr) s.dataset->set_use_chat_template(true);
}

void Target(Setting& s) {
  v1::DatasetSpec& data = *s.dataset;
  if (s.text == "HellaSwag") {
    data.set_format(v1::DATASET_FORMAT_HELLASWAG);
  } else if (s.text == "make_squad_dataset") {
    data.set_format(v1::DATASET_FORMAT_SQUAD);
  } else if (s.text == "ChatDataset") {
    data.set_format(v1::DATASET_FORMAT_CHAT);
  } else {
    data.set_format(v1::DATASET_FORMAT_COLUMN_MAPPED);
  }
}

void DatasetKeys(std::vector<RecipeKey>& keys) {
  static constexpr char kPadding[] =
      "padding never reaches the router or the loss; rows are as long as they need";
  static constexpr char kSplit[] =
      "a slice such as train[:1000] or [10%:20%]; the part before [ picks a file or folder of that "
      "name";
  keys.insert(
      keys.end(),
      {{"dataset._target_", T::kTarget, kUsed,
        "HellaSwag, make_squad_dataset, ChatDataset, ColumnMappedTextInstructionDataset (and "
        "...IterableDataset) [found out from the columns]",
        Target},
       {"dataset.path_or_dataset", T::kPaths, kUsed,
        "files, folders or globs; required, under one of its names", Paths},
       {"dataset.path_or_dataset_id", T::kPaths, kUsed, "the same", Paths},
       {"dataset.dataset_name", T::kPaths, kUsed, "the same (make_squad_dataset)", Paths},
       {"dataset.paths", T::kPaths, kUsed, "the same", Paths},
       {"dataset.format", T::kChoice, kUsed,
        "instead of _target_ [found out from the columns] (own key)",
        [](Setting& s) {
          s.dataset->set_format(s.text == "chat" ? v1::DATASET_FORMAT_CHAT
                                : s.text == "prompt_completion"
                                    ? v1::DATASET_FORMAT_PROMPT_COMPLETION
                                : s.text == "alpaca"        ? v1::DATASET_FORMAT_ALPACA
                                : s.text == "text"          ? v1::DATASET_FORMAT_TEXT
                                : s.text == "column_mapped" ? v1::DATASET_FORMAT_COLUMN_MAPPED
                                : s.text == "squad"         ? v1::DATASET_FORMAT_SQUAD
                                                            : v1::DATASET_FORMAT_HELLASWAG);
        },
        0, 0, "chat|prompt_completion|alpaca|text|column_mapped|squad|hellaswag"},
       {"dataset.split", T::kString, kUsed, kSplit,
        [](Setting& s) { s.dataset->set_split(s.text); }},
       {"dataset.column_mapping", T::kStringMap, kUsed,
        "context, question, answer: our role -> the file's column",
        [](Setting& s) {
          for (const auto& [role, column] : s.strings) {
            if (role != "context" && role != "question" && role != "answer") {
              s.Refuse(absl::StrCat("'", role, "' is none of context, question, answer"));
            }
            (*s.dataset->mutable_column_mapping())[role] = column;
          }
        }},
       {"dataset.answer_only_loss_mask", T::kBool, kUsed, "false: the prompt is learned too [true]",
        [](Setting& s) {
          s.dataset->set_loss_mask(s.flag ? v1::LOSS_MASK_COMPLETION : v1::LOSS_MASK_ALL);
        }},
       {"dataset.use_hf_chat_template", T::kBool, kUsed,
        "render the columns with the chat template [false: plain concatenation]",
        [](Setting& s) { s.dataset->set_use_chat_template(s.flag); }},
       {"dataset.mask_history", T::kBool, kUsed,
        "only the last assistant turn is learned [false: all of them]",
        [](Setting& s) {
          s.dataset->set_loss_mask(s.flag ? v1::LOSS_MASK_LAST_TURN : v1::LOSS_MASK_ASSISTANT);
        }},
       {"dataset.loss_mask", T::kChoice, kUsed,
        "what is learned [assistant for chats, completion for prompts, all for text] (own key)",
        [](Setting& s) {
          s.dataset->set_loss_mask(s.text == "all"         ? v1::LOSS_MASK_ALL
                                   : s.text == "assistant" ? v1::LOSS_MASK_ASSISTANT
                                   : s.text == "last_turn" ? v1::LOSS_MASK_LAST_TURN
                                                           : v1::LOSS_MASK_COMPLETION);
        },
        0, 0, "all|assistant|last_turn|completion"},
       {"dataset.seq_length", T::kInteger, kUsed,
        "longest sample in tokens, one for all data sets [packed_sequence_size, else 2048]",
        SeqLength, 2, 1 << 24},
       {"dataset.seq_len", T::kInteger, kUsed, "the same", SeqLength, 2, 1 << 24},
       {"dataset.truncation", T::kString, kUsed,
        "true (or longest_first, only_first): longer samples keep their beginning [yes]; false (or "
        "do_not_truncate): they are dropped and counted",
        [](Setting& s) {
          const std::optional<bool> flag = AsBool(s.node);
          if (flag == true || s.text == "longest_first" || s.text == "only_first") {
            s.draft.truncate = true;
          } else if (flag == false || s.text == "do_not_truncate") {
            // A validation set does not decide for the training set.
            if (!s.draft.truncate.has_value() || absl::StartsWith(s.key, "dataset."))
              s.draft.truncate = false;
          } else {
            s.Refuse(absl::StrCat(
                "expected true, false, longest_first, only_first or do_not_truncate, found ",
                Describe(s.node)));
          }
        }},
       {"dataset.padding", T::kAny, kIgnored, kPadding},
       {"dataset.pad_to_max_length", T::kBool, kIgnored, kPadding},
       {"dataset.num_samples_limit", T::kInteger, kUsed, "first rows only [all]", LimitRows, 1,
        1e15},
       {"dataset.limit_dataset_samples", T::kInteger, kUsed, "the same", LimitRows, 1, 1e15},
       {"dataset.shuffle_seed", T::kInteger, kUsed,
        "shuffles before split and limit apply [no shuffle]",
        [](Setting& s) { s.dataset->set_shuffle_seed(static_cast<uint32_t>(s.integer)); }, 0,
        4294967295.0},
       {"dataset.chat_template", T::kString, kUsed,
        "instead of the tokenizer's: a file, or Jinja text", ChatTemplate},
       {"dataset.skip_invalid_samples", T::kBool, kUsed,
        "malformed rows are skipped, counted and listed [false: the job fails and names the line]",
        [](Setting& s) {
          s.draft.spec.mutable_data()->set_malformed_rows(s.flag ? v1::MALFORMED_ROWS_SKIP
                                                                 : v1::MALFORMED_ROWS_FAIL);
        }},
       {"dataset.tokenizer", T::kPath, kIgnored, "must be the model folder's",
        [](Setting& s) { s.draft.tokenizers[s.key] = s.text; }},
       {"dataset.tokenizer._target_", T::kTarget, kIgnored, "the model folder's tokenizer is read"},
       {"dataset.tokenizer.pretrained_model_name_or_path", T::kPath, kIgnored,
        "must be the model folder's", [](Setting& s) { s.draft.tokenizers[s.key] = s.text; }},
       {"dataset.name", T::kString, kIgnored,
        "names a subset on the Hugging Face hub; files are given by path"},
       {"dataset.start_of_turn_token", T::kString, kIgnored,
        "masks come from the chat template itself"},
       {"dataset.unshifted", T::kBool, kIgnored, "labels are shifted once, by the loader"},
       {"dataset.mask_generation_prompt", T::kBool, kIgnored,
        "the assistant's header is never learned"},
       {"dataset.mask_reasoning_content", T::kBool, kRefused,
        "masking of reasoning is not there yet", RefuseTrue},
       {"dataset.splits_to_build", T::kAny, kRefused,
        "Megatron's indexed data sets are not read; give JSONL or parquet"}});
}

void LoaderKeys(std::vector<RecipeKey>& keys) {
  static constexpr char kMapped[] = "token files are mapped into memory; there are no workers";
  keys.insert(
      keys.end(),
      {{"data.malformed_rows", T::kChoice, kUsed,
        "fail: the job ends with file:line [fail]; skip: counted and listed (own key)",
        [](Setting& s) {
          s.draft.spec.mutable_data()->set_malformed_rows(
              s.text == "skip" ? v1::MALFORMED_ROWS_SKIP : v1::MALFORMED_ROWS_FAIL);
        },
        0, 0, "fail|skip"},
       {"data.overlong", T::kChoice, kUsed, "as dataset.truncation [truncate] (own key)",
        [](Setting& s) { s.draft.truncate = s.text == "truncate"; }, 0, 0, "truncate|drop"},
       {"data.chat_template", T::kString, kUsed, "as dataset.chat_template (own key)",
        ChatTemplate},
       {"packed_sequence.packed_sequence_size", T::kInteger, kUsed,
        "tokens per packed row; 0: no packing [0]",
        [](Setting& s) {
          if (s.integer == 1) s.Refuse("1 is outside 2 to 16777216; 0 is no packing");
          s.draft.packing_set = s.integer > 0;
          s.draft.spec.mutable_data()->set_pack_length(s.integer);
        },
        0, 1 << 24},
       {"packed_sequence.packing_strategy", T::kChoice, kUsed,
        "neat, best_fit: longest first into the fullest row with room [best_fit]; thd, sequential: "
        "in the data "
        "set's order. Documents never see each other either way",
        [](Setting& s) {
          s.draft.pack_strategy = s.text == "thd" || s.text == "sequential" ? v1::PACKING_SEQUENTIAL
                                                                            : v1::PACKING_BEST_FIT;
        },
        0, 0, "neat|thd|best_fit|sequential"},
       {"packed_sequence.split_across_pack", T::kBool, kRefused, "a document is never split",
        RefuseTrue},
       {"packed_sequence.drop_long_samples", T::kBool, kUsed, "as dataset.truncation: false",
        [](Setting& s) { s.draft.truncate = !s.flag; }},
       {"packed_sequence.max_packs", T::kInteger, kRefused,
        "use dataset.num_samples_limit or step_scheduler.max_steps"},
       {"packed_sequence.max_length", T::kInteger, kRefused, "use dataset.seq_length"},
       {"packed_sequence.pack_size", T::kInteger, kRefused, "use packed_sequence_size"},
       {"packed_sequence.pretokenize", T::kBool, kIgnored,
        "data is always prepared ahead, once per content"},
       {"packed_sequence.packing_ratio", T::kNumber, kIgnored, "rows are filled as far as they go"},
       {"dataloader._target_", T::kTarget, kIgnored, "our own loader"},
       {"dataloader.collate_fn", T::kTarget, kIgnored, "padding and packing are the loader's work"},
       {"dataloader.collate_fn._target_", T::kTarget, kIgnored,
        "padding and packing are the loader's work"},
       {"dataloader.collate_fn.pad_seq_len_divisible", T::kInteger, kIgnored,
        "kernels guard ragged tails"},
       {"dataloader.shuffle", T::kBool, kUsed, "a new order in each epoch, from the seed [true]",
        [](Setting& s) { s.draft.spec.mutable_data()->set_shuffle(s.flag); }},
       {"dataloader.shuffle_buffer_size", T::kInteger, kIgnored, "the whole epoch is shuffled"},
       {"dataloader.group_by_length", T::kBool, kRefused, "use packed_sequence instead",
        RefuseTrue},
       {"dataloader.batch_size", T::kInteger, kIgnored, "step_scheduler.local_batch_size holds"},
       {"dataloader.num_workers", T::kInteger, kIgnored, kMapped},
       {"dataloader.pin_memory", T::kBool, kIgnored, kMapped},
       {"dataloader.persistent_workers", T::kBool, kIgnored, kMapped},
       {"dataloader.prefetch_factor", T::kInteger, kIgnored, kMapped},
       {"dataloader.drop_last", T::kBool, kIgnored,
        "a ragged last step is scaled by its own tokens"},
       {"dataloader.dataset.**", T::kAny, kRefused, "use the top-level section `dataset`"},
       {"validation_dataloader.**", T::kAny, kIgnored,
        "validation reads all rows in order, local_batch_size at a time"}});
}

}  // namespace

void AppendDataKeys(std::vector<RecipeKey>& keys) {
  DatasetKeys(keys);
  LoaderKeys(keys);
}

}  // namespace switchyard
