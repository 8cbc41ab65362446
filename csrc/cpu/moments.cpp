// Moments of coalitions on the CPU, by the method of four Russians. Up to six players i make a strip, and its bits in a
// coalition one of 64 patterns. Forward, a value is added once to the table's row of its pattern, in the lanes j of the
// other players, and the rows are summed to the strip's players at the end: one addition serves six pairs. Backward, the
// rows hold the sums that a sample reads. All sums are float64, and lanes outside a coalition are never added to, so NaN
// stays where it belongs. A strip's sums, and a block's samples, are one thread's: the bits do not depend on how many
// there are. Compiled once per SIMD target.

#include "moments.h"

#include "../core/half.h"
#include "buffer.h"
#include "lanes.h"
#include "parallel.h"

namespace loupe::LOUPE_TARGET {
namespace {

constexpr int kStrip = 6;                               // players; a table of 64 rows and 64 lanes fills 32 KiB
constexpr int kStrips = (64 + kStrip - 1) / kStrip;     // of a word's players
constexpr int kLanesOfWord = 64;
constexpr int64_t kBlock = 2048;                        // samples of a backward block

typedef double Table[(1 << kStrip) * kLanesOfWord];
typedef double Totals[kStrip][kLanesOfWord];

#ifndef __AVX512F__
struct LaneMasks {
  Int mask[1 << kLanes];
  LaneMasks() {
    for (int bits = 0; bits < 1 << kLanes; ++bits)
      for (int l = 0; l < kLanes; ++l) mask[bits][l] = -(bits >> l & 1);
  }
};
const LaneMasks kMasks;
#endif

// x added in the lanes whose bit is set.
LOUPE_INLINE Real add_where(Real to, uint64_t bits, Real x) {
#ifdef __AVX512F__
  return (Real)_mm512_mask_add_pd((__m512d)to, __mmask8(bits), (__m512d)to, (__m512d)x);
#else
  return to + (Real)((Int)x & kMasks.mask[bits % (1 << kLanes)]);
#endif
}

// Players first .. first + count - 1, all of one word, against the lanes' players: `octets` times 8 from lane_first on.
struct Strip {
  int first, count, lane_first, octets;

  uint64_t pattern(const uint64_t* words) const { return words[first / 64] >> (first % 64) & ((1u << count) - 1); }
  uint64_t lanes(const uint64_t* words) const { return words[lane_first / 64] >> (lane_first % 64); }
  int width() const { return 8 * octets; }
};

int strips_of(int n) { return n / 64 * kStrips + (n % 64 + kStrip - 1) / kStrip; }

// Calls work(strip) for the players of strip number s, in parts of as many players as pay for a table when `rows`
// coalitions use it, against all lanes not before them.
template <class Work>
void for_each_part(int n, int s, int64_t rows, const Work& work) {
  const int word = s / kStrips, begin = 64 * word + s % kStrips * kStrip;
  const int end = std::min({n, begin + kStrip, 64 * word + 64}), most = rows >= 128 ? kStrip : rows >= 16 ? 3 : 1;
  for (int first = begin; first < end; first += most)
    for (int lane_first = first / 8 * 8; lane_first < n; lane_first = lane_first / 64 * 64 + 64) {
      const int lane_end = std::min(n, lane_first / 64 * 64 + 64);
      work(Strip{first, std::min(most, end - first), lane_first, (lane_end - lane_first + 7) / 8});
    }
}

template <int octets, class In>
void add_values(const Strip& strip, const uint64_t* words, int step, const In* values, int64_t count, double* table) {
  for (int64_t k = 0; k < count; ++k, words += step) {
    const Real x = Real{} + double(Storage<In>::widen(values[k]));
    const uint64_t lanes = strip.lanes(words);
    double* row = table + strip.pattern(words) * (8 * octets);
#pragma GCC unroll 32
    for (int l = 0; l < 8 * octets; l += kLanes) store(row + l, add_where(load<Real>(row + l), lanes >> l, x));
  }
}

template <int octets>
void add_rows(const Strip& strip, const uint64_t* words, int step, int64_t count, const double* table, Real* sums) {
  for (int64_t k = 0; k < count; ++k, words += step) {
    const uint64_t lanes = strip.lanes(words);
    const double* row = table + strip.pattern(words) * (8 * octets);
    Real sum = sums[k];
#pragma GCC unroll 32
    for (int l = 0; l < 8 * octets; l += kLanes) sum = add_where(sum, lanes >> l, load<Real>(row + l));
    sums[k] = sum;
  }
}

// Calls work with the number of octets as a constant.
template <class Work>
void for_octets(int octets, const Work& work) {
  switch (octets) {
    case 1: return work(std::integral_constant<int, 1>{});
    case 2: return work(std::integral_constant<int, 2>{});
    case 3: return work(std::integral_constant<int, 3>{});
    case 4: return work(std::integral_constant<int, 4>{});
    case 5: return work(std::integral_constant<int, 5>{});
    case 6: return work(std::integral_constant<int, 6>{});
    case 7: return work(std::integral_constant<int, 7>{});
    default: return work(std::integral_constant<int, 8>{});
  }
}

// Takes the strip's players out of the patterns one by one, the last first: the upper half of the rows holds the player,
// and is then added to the lower half, which is the table without it.
void sum_patterns(const Strip& strip, double* table, Totals& totals) {
  const int width = strip.width();
  for (int r = strip.count - 1; r >= 0; --r) {
    const int half = width << r;
    double* total = totals[r];
    std::fill_n(total, width, 0.0);
    for (int p = 0; p < half; p += width)
      for (int l = 0; l < width; ++l) {
        const double with = table[half + p + l];
        total[l] += with;
        table[p + l] += with;
      }
  }
}

// The upper triangle and, the same bits, the lower.
template <class In>
void write_totals(const Strip& strip, const Totals& totals, int n, In* moments) {
  const int lane_end = std::min(n, strip.lane_first + strip.width());
  const auto total = [&](int r, int j) {
    return Storage<In>::narrow(typename Storage<In>::Compute(totals[r][j - strip.lane_first]));
  };
  for (int r = 0; r < strip.count; ++r)
    for (int j = std::max(strip.first + r, strip.lane_first); j < lane_end; ++j)
      moments[int64_t(strip.first + r) * n + j] = total(r, j);
  for (int j = std::max(strip.first + 1, strip.lane_first); j < lane_end; ++j)
    for (int r = 0; r < std::min(strip.count, j - strip.first); ++r) moments[int64_t(j) * n + strip.first + r] = total(r, j);
}

// The rows of every pattern from its players' rows player(r)[lane].
template <class Player>
void make_patterns(const Strip& strip, double* table, const Player& player) {
  const int width = strip.width();
  std::fill_n(table, width, 0.0);
  for (int r = 0; r < strip.count; ++r) {
    const int half = width << r;
    double own[kLanesOfWord];
    for (int l = 0; l < width; ++l) own[l] = player(strip.first + r, strip.lane_first + l);
    for (int p = 0; p < half; p += width)
      for (int l = 0; l < width; ++l) table[half + p + l] = table[p + l] + own[l];
  }
}

template <class In>
void forward(const MomentsCall& call, const In* values, In* out, int threads) {
  const int n = call.n, words = call.words(), strips = strips_of(n);
  const int64_t work = call.S / std::max<int64_t>(call.G, 1) * n / 16 + n, chunk = std::max<int64_t>(1, (1 << 14) / work);
  parallel_chunks(call.C * call.G * strips, chunk, threads, [&] {
    return [&](int64_t begin, int64_t end) {
      alignas(64) Table table;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t c = item / strips / call.G, g = item / strips % call.G;
        const auto rows = call.rows(g);
        In* moments = out + (c * call.G + g) * n * n;
        for_each_part(n, int(item % strips), rows.end - rows.begin, [&](const Strip& strip) {
          std::fill_n(table, strip.width() << strip.count, 0.0);
          for_octets(strip.octets, [&](auto octets) {
            add_values<octets.value>(strip, call.coalitions + rows.begin * words, words, values + c * call.S + rows.begin,
                                     rows.end - rows.begin, table);
          });
          Totals totals;
          sum_patterns(strip, table, totals);
          write_totals(strip, totals, n, moments);
        });
      }
    };
  });
}

template <class In>
void backward(const MomentsCall& call, const In* grad, In* grad_values, int threads) {
  const int n = call.n, words = call.words();
  const int64_t blocks = (call.S + kBlock - 1) / kBlock;
  parallel_chunks(call.C * blocks, 1, threads, [&] {
    return [&](int64_t begin, int64_t end) {
      alignas(64) Table table;
      Buffer<Real> sums(std::min(kBlock, call.S));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t c = item / blocks, first = item % blocks * kBlock, last = std::min(call.S, first + kBlock);
        std::fill_n(sums.data, last - first, Real{});
        for (int64_t k = first, g = call.group_of(k); k < last; ++g) {
          const int64_t stop = std::min(call.rows(g).end, last), count = stop - k;
          const In* of = grad + (c * call.G + g) * n * n;
          const auto entry = [&](int i, int j) { return double(Storage<In>::widen(of[int64_t(i) * n + j])); };
          for (int s = 0; count > 0 && s < strips_of(n); ++s)
            for_each_part(n, s, count, [&](const Strip& strip) {
              make_patterns(strip, table, [&](int i, int j) {
                return j < i || j >= n ? 0.0 : j == i ? entry(i, i) : entry(i, j) + entry(j, i);
              });
              for_octets(strip.octets, [&](auto octets) {
                add_rows<octets.value>(strip, call.coalitions + k * words, words, count, table, sums.data + (k - first));
              });
            });
          k = stop;
        }
        for (int64_t k = first; k < last; ++k)
          grad_values[c * call.S + k] =
              Storage<In>::narrow(typename Storage<In>::Compute(lane_sum<double>(sums[k - first])));
      }
    };
  });
}

}  // namespace

void moments_forward(const MomentsCall& call, const void* values, void* out, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    forward(call, static_cast<const In*>(values), static_cast<In*>(out), threads);
  });
}

void moments_backward(const MomentsCall& call, const void* grad, void* grad_values, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    backward(call, static_cast<const In*>(grad), static_cast<In*>(grad_values), threads);
  });
}

}  // namespace loupe::LOUPE_TARGET
