// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"
#include "core/plugin/call.hpp"

namespace moe_diag {

// Calls into a plugin and turns whatever it throws into an Error that names it, its call and the data of the call.
// Errors of the usage kind keep their text: they point into the contract; the data of the call follows.
template <class Call>
auto guard(const PluginCall& call, Call&& body) {
  const CallScope scope(call);
  const auto failed = [&](std::string_view what) {
    return Error(ErrorKind::environment, text_of(call) + ": " + std::string(what));
  };
  try {
    return std::forward<Call>(body)();
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::environment) throw failed(e.what());
    const std::string place = text_of(call.place);
    throw Error(e.kind(), place.empty() ? e.what() : e.what() + (" (" + place + ")"));
  } catch (const std::bad_alloc&) {
    throw failed("out of memory; shorten the prompts, leave lanes out or capture less");
  } catch (const std::exception& e) {
    throw failed(e.what());
  } catch (...) {
    throw failed("threw something that is not an exception");
  }
}

}  // namespace moe_diag
