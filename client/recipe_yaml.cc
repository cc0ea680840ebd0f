#include "client/recipe_yaml.h"

#include <sstream>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "yaml-cpp/eventhandler.h"
#include "yaml-cpp/exceptions.h"
#include "yaml-cpp/mark.h"
#include "yaml-cpp/parser.h"

namespace switchyard {
namespace {

std::string Text(absl::string_view view) { return std::string(view); }

// Stops yaml-cpp's parser, which knows no other way to be stopped.
struct Fault {
  int line;
  std::string message;
};

// Builds the tree event by event, so that a limit is met before memory is spent.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const YamlLimits& limits) : limits_(limits) {}
  YamlNode& root() { return root_; }
  bool has_root() const { return has_root_; }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnAnchor(const YAML::Mark& mark, const std::string& name) override {
    throw Fault{mark.line + 1, absl::StrCat("anchor '&", name, "': anchors are not allowed")};
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Fault{mark.line + 1, "aliases (*name) are not allowed"};
  }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    OnScalar(mark, "?", YAML::anchor_t(), "");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    CheckTag(mark, tag);
    Count(mark);
    if (!open_.empty() && open_.back().node->is_map() && !open_.back().has_key) {
      Open& map = open_.back();
      if (!map.keys.insert(value).second) {
        throw Fault{mark.line + 1, absl::StrCat("duplicate key '", value, "'")};
      }
      map.key = value;
      map.has_key = true;
      return;
    }
    YamlNode* node = Place(mark, YamlNode::Kind::kScalar);
    node->text = value;
    node->quoted = tag == "!";
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    Enter(mark, tag, YamlNode::Kind::kList);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    Enter(mark, tag, YamlNode::Kind::kMap);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  // A collection being read. `node` stays valid: its parent gets no new child until it is closed.
  struct Open {
    YamlNode* node;
    bool has_key = false;
    std::string key;
    absl::flat_hash_set<std::string> keys;
  };

  void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      throw Fault{mark.line + 1, absl::StrCat("tag '", tag, "': tags are not allowed")};
    }
  }
  void Count(const YAML::Mark& mark) {
    if (++nodes_ > limits_.nodes) {
      throw Fault{mark.line + 1, absl::StrCat("more than ", limits_.nodes, " nodes")};
    }
  }
  void Enter(const YAML::Mark& mark, const std::string& tag, YamlNode::Kind kind) {
    CheckTag(mark, tag);
    Count(mark);
    if (!open_.empty() && open_.back().node->is_map() && !open_.back().has_key) {
      throw Fault{mark.line + 1, "a key must be a scalar"};
    }
    YamlNode* node = Place(mark, kind);
    if (static_cast<int>(open_.size()) == limits_.depth) {
      throw Fault{mark.line + 1, absl::StrCat("nested more than ", limits_.depth, " deep")};
    }
    open_.push_back({node, false, {}, {}});
  }
  YamlNode* Place(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode* node = &root_;
    if (open_.empty()) {
      has_root_ = true;
    } else if (Open& parent = open_.back(); parent.node->is_map()) {
      node = &parent.node->members.emplace_back(parent.key, YamlNode()).second;
      parent.has_key = false;
    } else {
      node = &parent.node->items.emplace_back();
    }
    node->kind = kind;
    node->line = mark.line + 1;
    return node;
  }

  const YamlLimits& limits_;
  YamlNode root_;
  bool has_root_ = false;
  int nodes_ = 0;
  std::vector<Open> open_;
};

absl::Status FaultAt(absl::string_view what, int line, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(what, ":", line, ": ", message));
}

// Any node at the root.
absl::StatusOr<YamlNode> ParseAny(absl::string_view text, absl::string_view what,
                                  const YamlLimits& limits) {
  if (text.size() > limits.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", text.size(), " bytes, at most ", limits.bytes, " are read"));
  }
  try {
    std::istringstream stream{Text(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder(limits);
    if (!parser.HandleNextDocument(builder) || !builder.has_root()) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": empty"));
    }
    YamlNode root = std::move(builder.root());
    TreeBuilder second(limits);
    if (parser.HandleNextDocument(second)) {
      return FaultAt(what, second.root().line, "a second document; a recipe is one");
    }
    return root;
  } catch (const Fault& fault) {
    return FaultAt(what, fault.line, fault.message);
  } catch (const YAML::Exception& e) {
    return FaultAt(what, e.mark.line + 1, e.msg);
  }
}

bool IsPlainWord(const YamlNode& node, std::initializer_list<const char*> words) {
  if (!node.is_scalar()) return false;
  for (const char* word : words) {
    if (node.text == word) return true;
  }
  return false;
}

bool IsNameChar(char c, bool first) {
  return c == '_' || absl::ascii_isalpha(c) || (!first && absl::ascii_isdigit(c));
}

// Expands one scalar. Returns false with `error` set.
bool Expand(std::string& text, std::string& error,
            const std::function<std::optional<std::string>(const std::string&)>& env) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '$' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    std::string name;
    std::optional<std::string> fallback;
    size_t end = i + 1;
    if (text[end] == '$') {
      out += '$';
      ++i;
      continue;
    }
    if (text[end] == '{') {
      const size_t close = text.find('}', end);
      if (close == std::string::npos) {
        error = absl::StrCat("'", text.substr(i, 40), "' has no closing brace");
        return false;
      }
      name = text.substr(end + 1, close - end - 1);
      if (const size_t comma = name.find(','); comma != std::string::npos) {
        fallback = Text(absl::StripAsciiWhitespace(name.substr(comma + 1)));
        name.resize(comma);
      }
      name = Text(absl::StripAsciiWhitespace(name));
      bool valid = !name.empty();
      for (size_t k = 0; k < name.size(); ++k) valid = valid && IsNameChar(name[k], k == 0);
      if (!valid) {
        error = absl::StrCat("'", name, "' is no name of an environment variable");
        return false;
      }
      end = close + 1;
    } else {
      while (end < text.size() && IsNameChar(text[end], end == i + 1)) ++end;
      name = text.substr(i + 1, end - i - 1);
      if (name.empty()) {
        out += '$';
        continue;
      }
    }
    std::optional<std::string> value = env(name);
    if (!value.has_value()) value = fallback;
    if (!value.has_value()) {
      error = absl::StrCat("environment variable ", name, " is not set; set it, or write ${", name,
                           ",default}");
      return false;
    }
    out += *value;
    i = end - 1;
  }
  text = std::move(out);
  return true;
}

}  // namespace

const YamlNode* YamlNode::Find(absl::string_view key) const {
  for (const auto& [name, node] : members) {
    if (name == key) return &node;
  }
  return nullptr;
}

absl::StatusOr<YamlNode> ParseYaml(absl::string_view text, absl::string_view what,
                                   const YamlLimits& limits) {
  ASSIGN_OR_RETURN(YamlNode root, ParseAny(text, what, limits));
  if (!root.is_map()) {
    return FaultAt(what, root.line,
                   absl::StrCat("a recipe is sections of keys, found ", Describe(root)));
  }
  return root;
}

absl::Status ApplyOverride(YamlNode& root, absl::string_view assignment) {
  const std::string shown = absl::StrCat("--set ", assignment);
  const size_t equals = assignment.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return absl::InvalidArgumentError(absl::StrCat(shown, ": expected a.b=value"));
  }
  const absl::string_view value = assignment.substr(equals + 1);
  YamlNode node;
  if (!value.empty() && absl::string_view("[{\"'").find(value[0]) != absl::string_view::npos) {
    ASSIGN_OR_RETURN(node, ParseAny(value, shown, YamlLimits()));
  } else {
    node.text = Text(value);
  }
  // Lines within an override mean nothing in the file.
  std::function<void(YamlNode&)> forget_lines = [&](YamlNode& n) {
    n.line = 0;
    for (YamlNode& item : n.items) forget_lines(item);
    for (auto& member : n.members) forget_lines(member.second);
  };
  forget_lines(node);

  YamlNode* at = &root;
  std::string done;
  for (absl::string_view part : absl::StrSplit(assignment.substr(0, equals), '.')) {
    if (part.empty()) return absl::InvalidArgumentError(absl::StrCat(shown, ": an empty key"));
    if (!at->is_map()) {
      if (!IsNull(*at)) {
        return absl::InvalidArgumentError(
            absl::StrCat(shown, ": ", done, " is no section but ", Describe(*at)));
      }
      *at = YamlNode();
      at->kind = YamlNode::Kind::kMap;
    }
    YamlNode* next = const_cast<YamlNode*>(at->Find(part));
    if (next == nullptr) next = &at->members.emplace_back(Text(part), YamlNode()).second;
    at = next;
    absl::StrAppend(&done, done.empty() ? "" : ".", part);
  }
  *at = std::move(node);
  return absl::OkStatus();
}

absl::Status InterpolateEnvironment(
    YamlNode& root, absl::string_view what,
    const std::function<std::optional<std::string>(const std::string&)>& env) {
  // An override (line 0) went through the user's shell already.
  if (root.is_scalar() && root.line > 0) {
    std::string error;
    if (!Expand(root.text, error, env)) return FaultAt(what, root.line, error);
  }
  for (YamlNode& item : root.items) RETURN_IF_ERROR(InterpolateEnvironment(item, what, env));
  for (auto& member : root.members) {
    RETURN_IF_ERROR(InterpolateEnvironment(member.second, what, env));
  }
  return absl::OkStatus();
}

bool IsNull(const YamlNode& node) {
  if (node.is_scalar() && node.text.empty()) return !node.quoted;
  return IsPlainWord(node, {"none", "None"}) ||
         (!node.quoted && IsPlainWord(node, {"~", "null", "Null", "NULL"}));
}

std::optional<bool> AsBool(const YamlNode& node) {
  if (IsPlainWord(node, {"true", "True", "TRUE"})) return true;
  if (IsPlainWord(node, {"false", "False", "FALSE"})) return false;
  if (node.quoted) return std::nullopt;
  if (IsPlainWord(node, {"yes", "Yes", "YES", "on", "On", "ON"})) return true;
  if (IsPlainWord(node, {"no", "No", "NO", "off", "Off", "OFF"})) return false;
  return std::nullopt;
}

std::optional<int64_t> AsInteger(const YamlNode& node) {
  if (!node.is_scalar()) return std::nullopt;
  const std::string text = absl::StrReplaceAll(node.text, {{"_", ""}});
  int64_t value = 0;
  if (absl::SimpleAtoi(text, &value)) return value;
  if (absl::StartsWith(text, "0x") && absl::SimpleHexAtoi(text, &value)) return value;
  return std::nullopt;
}

std::optional<double> AsNumber(const YamlNode& node) {
  if (const std::optional<int64_t> integer = AsInteger(node)) return static_cast<double>(*integer);
  if (!node.is_scalar() || node.text.empty()) return std::nullopt;
  // SimpleAtod also takes words such as "nan" and "infinity", which no key means.
  if (node.text.find_first_not_of("0123456789+-.eE_") != std::string::npos) return std::nullopt;
  double value = 0;
  if (!absl::SimpleAtod(absl::StrReplaceAll(node.text, {{"_", ""}}), &value)) return std::nullopt;
  return value;
}

std::string Describe(const YamlNode& node) {
  if (node.is_list()) return "a list";
  if (node.is_map()) return "a section";
  if (IsNull(node)) return "null";
  if (node.text.size() <= 60) return absl::StrCat("'", node.text, "'");
  return absl::StrCat("'", node.text.substr(0, 60), "...'");
}

}  // namespace switchyard
