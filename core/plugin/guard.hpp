// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"

namespace moe_diag {

// Calls into a plugin and turns whatever it throws into an Error that names it. Errors of the usage kind keep their
// text: they point into the contract.
template <class Call>
auto guard(std::string_view plugin, std::string_view call, Call&& body) {
  const auto failed = [&](std::string_view what) {
    return Error(ErrorKind::environment, std::string(plugin) + ": " + std::string(call) + ": " + std::string(what));
  };
  try {
    return std::forward<Call>(body)();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::environment) throw Error(e.kind(), e.what());
    throw failed(e.what());
  } catch (const std::bad_alloc&) {
    throw failed("out of memory; shorten the prompts, leave lanes out or capture less");
  } catch (const std::exception& e) {
    throw failed(e.what());
  } catch (...) {
    throw failed("threw something that is not an exception");
  }
}

}  // namespace moe_diag
