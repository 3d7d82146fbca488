// SPDX-License-Identifier: MIT
#include "core/contract/document.hpp"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cstdint>
#include <sstream>

#include "core/api/error.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"
#include "core/text/utf8.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t deepest = 32;  // a contract needs 6
constexpr std::size_t most_mistakes = 100;
constexpr std::string_view refused_alias =
    "an alias: '&' and '*' references are not supported, write the value out, or quote text that starts with '*'";
constexpr std::size_t largest = 1 << 20;  // bytes; yaml-cpp slows down on hostile megabytes

Where where_of(const YAML::Mark& mark) { return {std::max(mark.line, 0) + 1, std::max(mark.column, 0) + 1}; }

// Stops the parse after a mistake was added.
struct Stop {};

// The lines of a text, for a look at what stands where the parser stopped.
class Lines {
 public:
  explicit Lines(std::string_view text) {
    for (std::size_t start = 0; start <= text.size();) {
      const std::size_t end = std::min(text.find('\n', start), text.size());
      lines_.push_back(text.substr(start));
      length_.push_back(end - start);
      start = end + 1;
    }
  }
  std::string_view line(const Where& w) const {
    const auto i = static_cast<std::size_t>(w.line - 1);
    return i < lines_.size() ? lines_[i].substr(0, length_[i]) : std::string_view();
  }
  // Everything from a place to the end of the text.
  std::string_view rest(const Where& w) const {
    const auto i = static_cast<std::size_t>(w.line - 1), c = static_cast<std::size_t>(w.column - 1);
    return i < lines_.size() && c <= lines_[i].size() ? lines_[i].substr(c) : std::string_view();
  }

 private:
  std::vector<std::string_view> lines_;
  std::vector<std::size_t> length_;
};

// yaml-cpp takes a quoted text that the end of the file cuts off.
bool is_closed(std::string_view quoted) {
  const char quote = quoted.front();
  for (std::size_t i = 1; i < quoted.size(); ++i) {
    if (quote == '"' && quoted[i] == '\\') {
      ++i;
    } else if (quoted[i] == quote) {
      if (quote == '"' || i + 1 >= quoted.size() || quoted[i + 1] != quote) return true;
      ++i;
    }
  }
  return false;
}

class Builder : public YAML::EventHandler {
 public:
  Builder(const Lines& lines, const std::string& origin, Mistakes& mistakes)
      : lines_(lines), origin_(origin), mistakes_(mistakes) {}

  std::optional<YamlNode> take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (root_) stop(where_of(mark), "a second document starts here: a contract is one YAML document, remove '---'");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    attach(make(YamlNode::Kind::null, mark, "", anchor));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    mistakes_.add(where_of(mark), origin_, std::string(refused_alias));
    attach(make(YamlNode::Kind::null, mark, "", 0));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = make(YamlNode::Kind::scalar, mark, tag, anchor);
    const std::string_view source = lines_.rest(node.where);
    node.quoted = !source.empty() && (source.front() == '"' || source.front() == '\'');
    if (node.quoted && !is_closed(source)) stop(node.where, "this quote is never closed");
    if (first_not_utf8(value))
      stop(node.where, "an escape such as \\N, \\_ or \\x80 gives no UTF-8: write the character itself");
    node.text = value;
    attach(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(make(YamlNode::Kind::list, mark, tag, anchor));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(make(YamlNode::Kind::map, mark, tag, anchor));
  }
  void OnMapEnd() override { close(); }

 private:
  [[noreturn]] void stop(const Where& where, const std::string& message) {
    mistakes_.add(where, origin_, message);
    throw Stop();
  }

  YamlNode make(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    YamlNode node;
    node.kind = kind;
    node.where = where_of(mark);
    node.origin = origin_;
    if (anchor != 0)
      mistakes_.add(node,
                    "an anchor: '&' and '*' references are not supported, write the value out, "
                    "or quote text that starts with '&'");
    if (!tag.empty() && tag != "?" && tag != "!")
      mistakes_.add(node, fmt::format("'{}' is a YAML tag: tags are not supported, quote text that starts with '!'",
                                      shown((tag.front() == '!' ? "" : "!") + tag)));
    return node;
  }

  void open(YamlNode node) {
    if (stack_.size() >= deepest) stop(node.where, fmt::format("nested deeper than {} levels", deepest));
    stack_.push_back(std::move(node));
  }
  void close() {
    YamlNode node = std::move(stack_.back());
    stack_.pop_back();
    attach(std::move(node));
  }
  void attach(YamlNode node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    YamlNode& parent = stack_.back();
    if (parent.kind == YamlNode::Kind::map && parent.keys.size() == parent.items.size()) {
      if (node.kind != YamlNode::Kind::scalar) mistakes_.add(node, "a key must be text");
      parent.keys.push_back(std::move(node));
    } else {
      // A value that is missing is marked where the next thing stands: its key is the better place.
      if (parent.kind == YamlNode::Kind::map && node.kind == YamlNode::Kind::null)
        node.where = parent.keys.back().where;
      parent.items.push_back(std::move(node));
    }
  }

  const Lines& lines_;
  const std::string& origin_;
  Mistakes& mistakes_;
  std::vector<YamlNode> stack_;
  std::optional<YamlNode> root_;
};

// An alias of no anchor is refused in the words for all aliases: yaml-cpp's own differ from version to version.
bool names_no_anchor(const YAML::Exception& e) { return e.msg.starts_with(YAML::ErrorMsg::UNKNOWN_ANCHOR); }

// What to do about a parse error, guessed from the text around it.
std::string remedy(const YAML::Exception& e, const Lines& lines) {
  const Where where = where_of(e.mark);
  const std::string_view line = lines.line(where);
  const auto column = std::min(static_cast<std::size_t>(where.column - 1), line.size());
  const std::string_view head = line.substr(0, column);
  const std::string_view indent = line.substr(0, std::min(line.find_first_not_of(" \t"), line.size()));
  const auto quote_it = [](char c) { return fmt::format("quote text that starts with '{}'", c); };

  if (indent.find('\t') != std::string_view::npos) return "indent with spaces, not with tabs";
  if (line.find("${") != std::string_view::npos) return "quote text with a ${VARIABLE} in it: \"${NAME}\"";
  if (column < line.size() && std::string_view("*&!%@`").find(line[column]) != std::string_view::npos)
    return quote_it(line[column]);
  if (!head.empty() && std::string_view("*&!>|").find(head.back()) != std::string_view::npos)
    return quote_it(head.back());
  if (e.msg.find("illegal map value") != std::string::npos)
    return "quote text with ': ' in it, or indent this key like its neighbours";
  if (e.msg.find("flow") != std::string::npos) return "a '[' or '{' is not closed, or a comma is missing";
  if (e.msg.find("end of map not found") != std::string::npos || e.msg.find("end of seq") != std::string::npos)
    return "the indentation fits none of the lines above";
  return "quote the text";
}

Where where_at(std::string_view text, std::size_t offset) {
  const std::string_view head = text.substr(0, offset);
  const std::size_t start = head.rfind('\n') == std::string_view::npos ? 0 : head.rfind('\n') + 1;
  return {static_cast<int>(std::count(head.begin(), head.end(), '\n')) + 1, static_cast<int>(offset - start) + 1};
}

// What must not reach the YAML parser. It would guess at other encodings, and takes the byte 4 for the end of the file.
bool is_plain_text(std::string_view text, const std::string& origin, Mistakes& mistakes) {
  if (text.size() > largest) {
    mistakes.add(Where{1, 1}, origin, fmt::format("larger than {} bytes: this is not a contract", largest));
    return false;
  }
  if (const auto bad = first_not_utf8(text)) {
    mistakes.add(where_at(text, *bad), origin, "not UTF-8: save the file as UTF-8");
    return false;
  }
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F) {
      mistakes.add(where_at(text, i), origin, fmt::format("control character 0x{:02X}: remove it", c));
      return false;
    }
  }
  return true;
}

}  // namespace

void Mistakes::add(const Where& where, const std::string& origin, const std::string& message) {
  add(where, place(where, origin) + ": " + message);
}

void Mistakes::add(const Where& where, std::string text) {
  if (list_.size() < most_mistakes)
    list_.push_back({where, std::move(text)});
  else
    ++more_;
}

std::string Mistakes::place(const Where& where, const std::string& origin) const {
  return origin.empty() ? fmt::format("{}:{}:{}", path_, where.line, where.column) : origin;
}

void Mistakes::raise() const {
  if (list_.empty()) return;
  std::vector<Mistake> sorted = list_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Mistake& a, const Mistake& b) {
    return a.where.line != b.where.line ? a.where.line < b.where.line : a.where.column < b.where.column;
  });
  std::string text;
  for (const Mistake& m : sorted) text += (text.empty() ? "" : "\n") + m.text;
  if (more_ > 0) text += fmt::format("\n{}: and {} more", path_, more_);
  throw Error(ErrorKind::usage, text);
}

std::optional<YamlNode> parse_document(std::string_view text, const std::string& origin, Mistakes& mistakes) {
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  if (text.substr(0, 3) == byte_order_mark) text.remove_prefix(3);
  if (!is_plain_text(text, origin, mistakes)) return std::nullopt;
  const Lines lines(text);
  Builder builder(lines, origin, mistakes);
  try {
    std::istringstream in{std::string(text)};
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const Stop&) {
    return std::nullopt;
  } catch (const YAML::Exception& e) {
    mistakes.add(
        where_of(e.mark), origin,
        names_no_anchor(e) ? std::string(refused_alias) : fmt::format("not YAML: {}: {}", e.msg, remedy(e, lines)));
    return std::nullopt;
  }
  return builder.take();
}

}  // namespace moe_diag
