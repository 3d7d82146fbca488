// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>

#include "core/model/model.hpp"
#include "core/model/synthetic.hpp"
#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/plugin/sink_support.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

constexpr TextOption text_option{"text", "some", "t"};
constexpr PathOption path_option{"path", Required{"a.npy"}, "t"};
constexpr IntegerOption integer_option{"integer", "rows", "5", -3, 9, "t"};
constexpr IntegerOption any_option{
    "any", "", "0", std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(), "t"};
constexpr FlagOption flag_option{"flag", "true", "t"};
constexpr ChoiceOption choice_option{"choice", "red dark-green", Computed{"by the weather"}, "t"};

template <class Option>
std::string refusal_of_value(const Option& option, const std::string& value) {
  const Options options = made_options("sink 'it'", {{option.name, value}});
  return error_of([&] { static_cast<void>(options.read(option)); });
}

TEST_CASE("an option is read from the contract, or is its fallback") {
  const Options none = made_options("sink 'it'", {});
  CHECK(none.read(text_option) == "some");
  CHECK(none.read(integer_option) == 5);
  CHECK(none.read(flag_option));
  CHECK_FALSE(none.has(choice_option));
  CHECK(error_of([&] { none.read(path_option); }) == "made.yaml:1:1: sink 'it': path: missing, this key is required");
  CHECK(none.asked() == std::vector<std::string>{"text", "integer", "flag", "choice", "path"});

  const Options all = made_options("sink 'it'", {{"text", ""},
                                                 {"path", "a/b.npy"},
                                                 {"integer", "-3"},
                                                 {"any", "-9223372036854775808"},
                                                 {"flag", "false"},
                                                 {"choice", "dark-green"}});
  CHECK(all.unread().size() == 6);
  CHECK(all.read(text_option).empty());
  CHECK(all.read(path_option) == "a/b.npy");
  CHECK(all.read(integer_option) == -3);
  CHECK(all.read(any_option) == std::numeric_limits<std::int64_t>::min());
  CHECK_FALSE(all.read(flag_option));
  CHECK(all.read(choice_option) == "dark-green");
  CHECK(all.unread().empty());
}

TEST_CASE("a value that an option cannot have is refused where it stands, with what it can have") {
  for (const char* value : {"10", "-4", "", "-", "1.0", "05", "+5", "5 ", "x", "99999999999999999999"}) {
    INFO(value);
    CHECK(refusal_of_value(integer_option, value) == "made.yaml:2:3: sink 'it': integer: found '" + std::string(value) +
                                                         "', expected a whole number from -3 to 9");
  }
  for (const char* value : {"9223372036854775808", "-9223372036854775809", "18446744073709551616"})
    CHECK_THAT(refusal_of_value(any_option, value), Contains("expected a whole number"));
  CHECK(refusal_of_value(any_option, "9223372036854775807") == "no error");
  for (const char* value : {"yes", "True", "1", ""})
    CHECK_THAT(refusal_of_value(flag_option, value), Contains("expected true or false"));
  for (const char* value : {"", "re", "redd", "red dark-green", "dark"})
    CHECK_THAT(refusal_of_value(choice_option, value), Contains("expected one of red, dark-green"));
  for (const char* value : {"", "..", "../a", "a/../b", "a/.."})
    CHECK_THAT(refusal_of_value(path_option, value), Contains("expected a path below --out"));
  for (const char* value : {"a..b", "/tmp/../x", "./a", "...", "a"})
    CHECK(refusal_of_value(path_option, value) == "no error");
}

TEST_CASE("a plugin lists exactly the options that it reads") {
  const Model model = Model::synthetic(SyntheticSpec{});
  PluginHost host({MOE_DIAG_PLUGINS});
  int looked_at = 0;
  for (const PluginRecord& record : host.list()) {
    if (!record.absent.empty()) continue;
    INFO(record.name);
    REQUIRE(record.refusal.empty());
    Options options = made_options("it", {});
    for (const OptionInfo& option : record.options)
      if (option.absent == OptionAbsent::required) options.add(option.name, option.value, "made.yaml:9:9");
    if (record.kind == PluginKind::sink) {
      CHECK(host.make_sink(record.name, options) != nullptr);
    } else {
      const auto backend = host.make_backend(record.name, options);
      try {
        backend->describe(model.view(), options, {4, 4});
      } catch (const Error& e) {
        REQUIRE(e.kind() == ErrorKind::absent);  // a device
      }
    }
    std::vector<std::string> listed, asked = options.asked();
    for (const OptionInfo& option : record.options) listed.emplace_back(option.name);
    std::sort(listed.begin(), listed.end());
    std::sort(asked.begin(), asked.end());
    CHECK(listed == asked);
    ++looked_at;
  }
  CHECK(looked_at >= 3);
}

}  // namespace
}  // namespace moe_diag
