// Checks that survive a release build: a broken rule becomes std::invalid_argument, which Python sees as
// ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

#define HUATUO_CHECK(condition, message)                \
  do {                                                  \
    if (!(condition)) {                                 \
      std::ostringstream huatuo_stream;                 \
      huatuo_stream << message;                         \
      throw std::invalid_argument(huatuo_stream.str()); \
    }                                                   \
  } while (0)
