// For tests: whether random choices without repetition were uniform. Not part of the engine.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace reprise {

// Pearson's statistic for how often each of counts.size() members was among `size` chosen ones, over `replicates`
// independent choices; scaled so that it follows chi-square with counts.size() - 1 degrees of freedom.
inline double InclusionStatistic(std::span<const uint64_t> counts, double replicates, double size) {
  const double members = static_cast<double>(counts.size());
  const double share = size / members;
  double sum = 0;
  for (const uint64_t count : counts) sum += std::pow(static_cast<double>(count) - replicates * share, 2);
  return sum / (replicates * share * (1 - share)) * (members - 1) / members;
}

// The value that chi-square with `degrees` of freedom exceeds with probability 0.01 (Wilson and Hilferty 1931).
inline double CriticalValue(std::size_t degrees) {
  const double variance = 2.0 / (9.0 * static_cast<double>(degrees));
  return static_cast<double>(degrees) * std::pow(1 - variance + 2.3263 * std::sqrt(variance), 3);
}

}  // namespace reprise
