// Attention over rows of different lengths, dropout + residual + layer normalisation, and GELU, for a CPU, in fp32.
//
// The attention never stores its weights: the forward pass keeps the logarithm of each query's softmax sum, and the backward
// pass computes the weights again from it (FlashAttention: Dao et al., 2022; one pass over keys: Milakov and Gimelshein, 2018).
// A task is one row and one head, works in memory of its own and shares no sum with another, so that the result depends
// neither on the number of threads nor on what else is in the batch. NaN and infinity behave as in the formula.
//
// All products go through one routine, `multiply`; its right factor lies in panels of PANEL columns:
//
//     forward    scores = Q Kt      out += weights V
//     backward   scores = Q Kt      d_weights = dO Vt      dQ += d_scores K      dK += d_scores^T Q      dV += weights^T dO
//
// Plain C functions over pointers, since a build that includes PyTorch's headers takes ten times as long.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

namespace {

// --- vectors ---------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 8;  // 32 registers: 8 x 2 sums, and room for the factors
#elif defined(__AVX__)
constexpr int LANES = 8, TILE = 4;   // 16 registers
#else
constexpr int LANES = 4, TILE = 4;
#endif
constexpr int PANEL = 2 * LANES;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

typedef uint32_t Bits __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LOG2_E = 1.44269504088896341f;

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// 2^x for x <= 0 (up to rounding), to 1e-7 relative; 0 below the normal numbers, NaN for NaN. Coefficients: Cephes' exp2f.
template <typename Float, typename Bits>
inline Float exp2_of(Float x) {
    Float shifted = x + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are x, rounded
    Float whole = shifted - 12582912.0f, rest = x - whole;
    Float p = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * rest + 9.618437357674640e-3f;
    p = p * rest + 5.550332471162809e-2f;
    p = p * rest + 2.402264791363012e-1f;
    p = p * rest + 6.931472028550421e-1f;
    p = p * rest + 1.0f;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits + 127u) << 23;  // 2^whole: the constant's own bits leave at the top
    Float power;
    std::memcpy(&power, &bits, sizeof(power));
    return x < -126.0f ? Float{} : p * power;
}
inline float exp2_fast(float x) { return exp2_of<float, uint32_t>(x); }
inline Vector exp2_fast(Vector x) { return exp2_of<Vector, Bits>(x); }

// --- across lanes ------------------------------------------------------------------------------------------

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#ifdef SHUFFLES
// Of two rows, what stands in the lanes with the bit STEP in the first and in those without it in the second changes places.
template <int STEP, size_t... L>
inline void exchange(Vector& a, Vector& b, std::index_sequence<L...>) {
    const Vector first = __builtin_shufflevector(a, b, (L & STEP ? LANES + L - STEP : L)...);
    b = __builtin_shufflevector(a, b, (L & STEP ? LANES + L : L + STEP)...);
    a = first;
}

template <int STEP>
inline void exchange_all(Vector* rows) {
    for (int i = 0; i < LANES; i++)
        if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP], std::make_index_sequence<LANES>());
}
#endif

// Transpose LANES x LANES numbers in place: bit by bit, a row's number and a lane's change roles.
inline void transpose(Vector* rows) {
#ifdef SHUFFLES
    exchange_all<1>(rows);
    exchange_all<2>(rows);
    if constexpr (LANES > 4) exchange_all<4>(rows);
    if constexpr (LANES > 8) exchange_all<8>(rows);
#else
    float all[LANES][LANES];
    for (int i = 0; i < LANES; i++) store(all[i], rows[i]);
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) rows[i][j] = all[j][i];
#endif
}

// What `join` makes of each vector's lanes, for `count` vectors; `out` has room for a multiple of LANES.
template <typename Join>
inline void across(const Vector* vectors, int64_t count, float* out, Join join) {
    for (int64_t first = 0; first < count; first += LANES) {
        Vector rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = vectors[std::min(first + i, count - 1)];
        transpose(rows);
        for (int width = LANES / 2; width; width /= 2)
            for (int i = 0; i < width; i++) rows[i] = join(rows[i], rows[i + width]);
        store(out + first, rows[0]);
    }
}
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector added(Vector a, Vector b) { return a + b; }

// --- products --------------------------------------------------------------------------------------------

// C (M x V vectors) = or += A (M x depth) B (depth x V vectors); A's strides are known when this is compiled.
template <int M, int V, int ROW, int COLUMN>
inline void tile(int64_t depth, const float* a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    Vector sum[M][V];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < V; v++) sum[i][v] = add ? load(c + i * c_row + v * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        Vector right[V];
        for (int v = 0; v < V; v++) right[v] = load(b + k * b_row + v * LANES);
        for (int i = 0; i < M; i++)
            for (int v = 0; v < V; v++) sum[i][v] += a[i * ROW + k * COLUMN] * right[v];
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < V; v++) store(c + i * c_row + v * LANES, sum[i][v]);
}

template <int V, int ROW, int COLUMN>
inline void column(int64_t m, int64_t depth, const float* a, const float* b, int64_t b_row, float* c, int64_t c_row,
                   bool add) {
    int64_t i = 0;
    for (; i + TILE <= m; i += TILE)
        tile<TILE, V, ROW, COLUMN>(depth, a + i * ROW, b, b_row, c + i * c_row, c_row, add);
    if (TILE > 4 && i + 4 <= m) {
        tile<4, V, ROW, COLUMN>(depth, a + i * ROW, b, b_row, c + i * c_row, c_row, add);
        i += 4;
    }
    if (i + 2 <= m) {
        tile<2, V, ROW, COLUMN>(depth, a + i * ROW, b, b_row, c + i * c_row, c_row, add);
        i += 2;
    }
    if (i < m) tile<1, V, ROW, COLUMN>(depth, a + i * ROW, b, b_row, c + i * c_row, c_row, add);
}

// C (m x n) = or += A (m x depth) B (depth x n), n a multiple of LANES. B's panels are `panel` floats apart.
template <int ROW, int COLUMN>
void multiply(int64_t m, int64_t n, int64_t depth, const float* a, const float* b, int64_t b_row, int64_t panel,
              float* c, int64_t c_row, bool add) {
    for (; n >= PANEL; n -= PANEL, b += panel, c += PANEL)
        column<2, ROW, COLUMN>(m, depth, a, b, b_row, c, c_row, add);
    if (n) column<1, ROW, COLUMN>(m, depth, a, b, b_row, c, c_row, add);
}

// --- dropout ---------------------------------------------------------------------------------------------

// Whether a value is kept depends on the seed, its line and its place only, so that the backward pass can tell again.
struct Dropout {
    uint64_t seed;
    uint32_t threshold;  // of 2^32: below it a value is dropped
    float kept;          // what a kept value is multiplied by

    struct Line {
        uint32_t low, high;
    };

    Line line(uint64_t number) const {  // splitmix64 (Steele et al., 2014)
        uint64_t x = seed + number * 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        x ^= x >> 31;
        return {static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32)};
    }

    // Two rounds of multiply and shift (Wellons' lowbias32), the line's key entering before each.
    float factor(Line line, uint32_t place) const {
        uint32_t x = place * 0x9e3779b9u ^ line.low;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15) ^ line.high) * 0x846ca68bu;
        x ^= x >> 16;
        return x < threshold ? 0.0f : kept;
    }
};

// --- attention -------------------------------------------------------------------------------------------

constexpr int QUERIES = 32, KEYS = 256;  // of a block: its scores take 32 KiB and stay in a near cache
constexpr int WIDEST = 256;              // head size
constexpr int LINE = 16, FETCHED = 64;   // floats of a cache line; positions of a row that are asked for ahead

// A thread's own memory, taken piece by piece. It is kept from call to call, because a system that hands out fresh pages
// each time costs more than a short row's attention.
class Workspace {
  public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(base_); }
    void begin(int64_t floats) {
        if (floats > size_) {
            std::free(base_);
            base_ = static_cast<float*>(std::aligned_alloc(64, round_up(floats * sizeof(float), 64)));
            if (!base_) std::abort();  // as a failed `new` ends where nothing can catch it
            size_ = floats;
        }
        next_ = base_;
    }
    float* take(int64_t floats) {
        float* piece = next_;
        next_ += round_up(floats, 16);
        return piece;
    }

  private:
    float *base_ = nullptr, *next_ = nullptr;
    int64_t size_ = 0;
};

thread_local Workspace memory;

}  // namespace

extern "C" {

struct View {  // (positions, heads, width); the last stride is 1
    float* data;
    int64_t position, head;
};

struct Problem {
    const int64_t *queries, *keys;  // offsets, rows + 1 each
    int64_t rows, heads, shared;    // heads of the keys, and how many heads of queries share one
    int64_t width, longest_queries, longest_keys;
    int64_t causal, threads;
    float scale, kept;
    uint64_t seed;
    uint32_t threshold;  // 0 without dropout
};

}  // extern "C"

namespace {

// One row of the problem, one head of its keys.
struct Task {
    int64_t row, head, first, queries, low, keys;

    Task(const Problem& problem, int64_t number)
        : row(number / problem.heads),
          head(number % problem.heads),
          first(problem.queries[row]),
          queries(problem.queries[row + 1] - first),
          low(problem.keys[row]),
          keys(problem.keys[row + 1] - low) {}

    // How many keys query `i` sees.
    int64_t seen(const Problem& problem, int64_t i) const {
        return problem.causal ? std::clamp<int64_t>(keys - queries + i + 1, 0, keys) : keys;
    }
};

inline float* at(const View& view, int64_t position, int64_t head) {
    return view.data + position * view.position + head * view.head;
}

// Copy (rows, width) into rows of `stride` floats, times `factor`, zeros up to `padded`.
void pack(const float* from, int64_t from_row, int64_t rows, int64_t width, int64_t padded, float factor, float* to,
          int64_t stride) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t d = 0; d < width; d++) to[i * stride + d] = from[i * from_row + d] * factor;
        for (int64_t d = width; d < padded; d++) to[i * stride + d] = 0.0f;
    }
}

// Copy (rows, width) into panels of its transpose, (width, PANEL) each, with zeros behind the last row.
void pack_transposed(const float* from, int64_t from_row, int64_t rows, int64_t width, float* to) {
    const int64_t whole = width / LANES * LANES;
    for (int64_t first = 0; first < rows; first += PANEL, to += width * PANEL)
        for (int64_t half = 0; half < PANEL; half += LANES) {
            const int64_t taken = std::clamp<int64_t>(rows - first - half, 0, LANES);
            const float* block = from + (first + half) * from_row;
            for (int64_t d = 0; d < whole; d += LANES) {
                Vector lines[LANES];
                for (int i = 0; i < LANES; i++) lines[i] = i < taken ? load(block + i * from_row + d) : Vector{};
                transpose(lines);
                for (int i = 0; i < LANES; i++) store(to + (d + i) * PANEL + half, lines[i]);
            }
            for (int64_t d = whole; d < width; d++)
                for (int64_t j = 0; j < LANES; j++) to[d * PANEL + half + j] = j < taken ? block[j * from_row + d] : 0.0f;
        }
}

// scores (queries x keys of a block) = Q Kt; `right` are panels of a transpose, from key `from` on.
inline void scores_of(int64_t queries, int64_t keys, int64_t width, const float* left, const float* right, int64_t from,
                      float* scores) {
    multiply<WIDEST, 1>(queries, round_up(keys, LANES), width, left, right + from * width, PANEL, width * PANEL, scores,
                        KEYS, false);
}

// What a task takes at most: `copies` of the longest row's keys, and the blocks.
int64_t floats_of(const Problem& problem, int64_t copies) {
    const int64_t padded = round_up(problem.width, LANES);
    return copies * round_up(problem.longest_keys, PANEL) * padded + QUERIES * (2 * WIDEST + 2 * KEYS + padded) +
           256;  // what rounding each piece up may add
}

void forward_task(const Problem& problem, const Task& task, const View& query, const View& key, const View& value,
                  float* out, float* sums) {
    const int64_t width = problem.width, padded = round_up(width, LANES), heads = problem.heads * problem.shared;
    const Dropout dropout{problem.seed, problem.threshold, problem.kept};
    memory.begin(floats_of(problem, 2));
    float* keys = memory.take(round_up(task.keys, PANEL) * width);
    float* values = memory.take(task.keys * padded);
    float* queries = memory.take(QUERIES * WIDEST);
    float* scores = memory.take(QUERIES * KEYS);
    float* result = memory.take(QUERIES * padded);
    pack_transposed(at(key, task.low, task.head), key.position, task.keys, width, keys);
    pack(at(value, task.low, task.head), value.position, task.keys, width, padded, 1.0f, values, padded);

    for (int64_t head = task.head * problem.shared; head < (task.head + 1) * problem.shared; head++)
        for (int64_t first = 0; first < task.queries; first += QUERIES) {
            const int64_t count = std::min<int64_t>(QUERIES, task.queries - first);
            const int64_t visible = task.seen(problem, first + count - 1);
            pack(at(query, task.first + first, head), query.position, count, width, width, problem.scale * LOG2_E,
                 queries, WIDEST);
            float highest[QUERIES], sum[QUERIES];
            std::fill_n(highest, count, -INF);
            std::fill_n(sum, count, 0.0f);
            std::fill_n(result, count * padded, 0.0f);
            for (int64_t from = 0; from < visible; from += KEYS) {
                const int64_t block = std::min<int64_t>(KEYS, visible - from), whole = round_up(block, LANES);
                scores_of(count, block, width, queries, keys, from, scores);
                int64_t seen[QUERIES];
                Vector parts[QUERIES];
                float found[QUERIES];  // of a block: the largest score, then the sum of the weights
                for (int64_t i = 0; i < count; i++) {
                    float* line = scores + i * KEYS;
                    seen[i] = std::clamp<int64_t>(task.seen(problem, first + i) - from, 0, block);
                    std::fill(line + seen[i], line + whole, seen[i] ? -INF : 0.0f);
                    parts[i] = load(line);
                    for (int64_t j = LANES; j < whole; j += LANES) parts[i] = larger(load(line + j), parts[i]);
                }
                across(parts, count, found, larger);
                for (int64_t i = 0; i < count; i++) {
                    parts[i] = Vector{};
                    if (!seen[i]) continue;
                    float* line = scores + i * KEYS;
                    const float top = std::max(highest[i], found[i]);
                    if (from) {  // what was summed before was relative to a lower maximum
                        const float lower = exp2_fast(highest[i] - top);
                        sum[i] *= lower;
                        for (int64_t d = 0; d < padded; d++) result[i * padded + d] *= lower;
                    }
                    highest[i] = top;
                    for (int64_t j = 0; j < whole; j += LANES) {
                        const Vector weight = exp2_fast(load(line + j) - top);
                        parts[i] += weight;
                        store(line + j, weight);
                    }
                    if (problem.threshold) {
                        const auto key_of = dropout.line((task.first + first + i) * heads + head);
#pragma omp simd
                        for (int64_t j = 0; j < whole; j++) line[j] *= dropout.factor(key_of, from + j);
                    }
                }
                across(parts, count, found, added);
                for (int64_t i = 0; i < count; i++) sum[i] += found[i];
                multiply<KEYS, 1>(count, padded, block, scores, values + from * padded, padded, PANEL, result, padded,
                                  true);
            }
            for (int64_t i = 0; i < count; i++) {
                const int64_t place = (task.first + first + i) * heads + head;
                const bool blind = task.seen(problem, first + i) == 0;
                const float share = blind ? 0.0f : 1.0f / sum[i];
                sums[place] = blind ? INF : highest[i] + std::log2(sum[i]);
                for (int64_t d = 0; d < width; d++) out[place * width + d] = result[i * padded + d] * share;
            }
        }
}

void backward_task(const Problem& problem, const Task& task, const View& query, const View& key, const View& value,
                   const float* out, const float* sums, const View& d_out, float* d_query, float* d_key, float* d_value) {
    const int64_t width = problem.width, padded = round_up(width, LANES), heads = problem.heads * problem.shared;
    const Dropout dropout{problem.seed, problem.threshold, problem.kept};
    memory.begin(floats_of(problem, 5));
    float* keys_t = memory.take(round_up(task.keys, PANEL) * width);
    float* values_t = memory.take(round_up(task.keys, PANEL) * width);
    float* keys = memory.take(task.keys * padded);
    float* d_keys = memory.take(task.keys * padded);
    float* d_values = memory.take(task.keys * padded);
    float* queries = memory.take(QUERIES * WIDEST);
    float* d_outs = memory.take(QUERIES * WIDEST);
    float* weights = memory.take(QUERIES * KEYS);
    float* d_scores = memory.take(QUERIES * KEYS);
    float* result = memory.take(QUERIES * padded);
    pack_transposed(at(key, task.low, task.head), key.position, task.keys, width, keys_t);
    pack_transposed(at(value, task.low, task.head), value.position, task.keys, width, values_t);
    pack(at(key, task.low, task.head), key.position, task.keys, width, padded, 1.0f, keys, padded);
    std::fill_n(d_keys, task.keys * padded, 0.0f);
    std::fill_n(d_values, task.keys * padded, 0.0f);

    for (int64_t head = task.head * problem.shared; head < (task.head + 1) * problem.shared; head++)
        for (int64_t first = 0; first < task.queries; first += QUERIES) {
            const int64_t count = std::min<int64_t>(QUERIES, task.queries - first);
            const int64_t visible = task.seen(problem, first + count - 1);
            pack(at(query, task.first + first, head), query.position, count, width, padded, problem.scale * LOG2_E,
                 queries, WIDEST);
            pack(at(d_out, task.first + first, head), d_out.position, count, width, padded, 1.0f, d_outs, WIDEST);
            std::fill_n(result, count * padded, 0.0f);
            float through[QUERIES];  // sum of weight * d_weight over the keys, which is dO O
            Vector parts[QUERIES];
            for (int64_t i = 0; i < count; i++) {
                const float *o = out + ((task.first + first + i) * heads + head) * width, *d_o = d_outs + i * WIDEST;
                parts[i] = Vector{};
                int64_t d = 0;
                for (; d + LANES <= width; d += LANES) parts[i] += load(o + d) * load(d_o + d);
                for (; d < width; d++) parts[i][0] += o[d] * d_o[d];
            }
            across(parts, count, through, added);
            for (int64_t from = 0; from < visible; from += KEYS) {
                const int64_t block = std::min<int64_t>(KEYS, visible - from), whole = round_up(block, LANES);
                scores_of(count, block, width, queries, keys_t, from, weights);
                scores_of(count, block, width, d_outs, values_t, from, d_scores);
                for (int64_t i = 0; i < count; i++) {
                    float *line = weights + i * KEYS, *d_line = d_scores + i * KEYS;
                    const int64_t place = (task.first + first + i) * heads + head;
                    const int64_t seen = std::clamp<int64_t>(task.seen(problem, first + i) - from, 0, block);
                    const float sum = sums[place], mean = through[i];
                    if (problem.threshold) {
                        const auto key_of = dropout.line(place);
#pragma omp simd
                        for (int64_t j = 0; j < whole; j++) {
                            const float weight = exp2_fast(line[j] - sum), factor = dropout.factor(key_of, from + j);
                            line[j] = weight * factor;
                            d_line[j] = weight * (d_line[j] * factor - mean);
                        }
                    } else {
                        for (int64_t j = 0; j < whole; j += LANES) {
                            const Vector weight = exp2_fast(load(line + j) - sum);
                            store(line + j, weight);
                            store(d_line + j, weight * (load(d_line + j) - mean));
                        }
                    }
                    std::fill(line + seen, line + block, 0.0f);
                    std::fill(d_line + seen, d_line + block, 0.0f);
                }
                multiply<KEYS, 1>(count, padded, block, d_scores, keys + from * padded, padded, PANEL, result, padded,
                                  true);
                multiply<1, KEYS>(block, padded, count, d_scores, queries, WIDEST, PANEL, d_keys + from * padded, padded,
                                  true);
                multiply<1, KEYS>(block, padded, count, weights, d_outs, WIDEST, PANEL, d_values + from * padded, padded,
                                  true);
            }
            for (int64_t i = 0; i < count; i++)
                for (int64_t d = 0; d < width; d++)
                    d_query[((task.first + first + i) * heads + head) * width + d] =
                        result[i * padded + d] * problem.scale;
        }
    // The packed queries already hold the scale, times log2(e).
    for (int64_t j = 0; j < task.keys; j++)
        for (int64_t d = 0; d < width; d++) {
            const int64_t place = ((task.low + j) * problem.heads + task.head) * width + d;
            d_key[place] = d_keys[j * padded + d] * (1.0f / LOG2_E);
            d_value[place] = d_values[j * padded + d];
        }
}

// Ask for the numbers of one head of a row, a short one: they lie apart, one head after the other, so that no processor foresees them.
void fetch(const View& view, int64_t first, int64_t positions, int64_t head, int64_t width) {
    for (int64_t i = 0; i < std::min<int64_t>(positions, FETCHED); i++)
        for (int64_t d = 0; d < width; d += LINE) __builtin_prefetch(at(view, first + i, head) + d);
}

// Call `run(task)` for every row and head of the keys, on the threads asked for; `soon(task)` while the one before it runs.
template <typename Run, typename Soon>
void for_each_task(const Problem& problem, Run run, Soon soon) {
    const int64_t number = problem.rows * problem.heads;
    int64_t pairs = 0;
    for (int64_t row = 0; row < problem.rows; row++) {
        const Task task(problem, row * problem.heads);
        pairs += task.queries * task.keys;
    }
    // All heads of a row are one thread's, where there are rows enough and none is so long that the other threads would wait for it.
    const bool even = 2 * problem.threads * problem.longest_queries * problem.longest_keys <= pairs;
    const int chunk = even && problem.rows >= 8 * problem.threads ? static_cast<int>(problem.heads) : 1;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(static_cast<int>(problem.threads))
    for (int64_t i = 0; i < number; i++) {
        if (i + 1 < number) soon(Task(problem, i + 1));
        run(Task(problem, i));
    }
}

}  // namespace

extern "C" {

const char* vectors() { return LANES == 16 ? "AVX-512" : LANES == 8 ? "AVX" : "128-bit vectors"; }

// out (queries, heads, width) and sums (queries, heads), the base-2 logarithm of the softmax sum; both without gaps.
void attention_forward(const Problem* problem, const View* query, const View* key, const View* value, float* out,
                       float* sums) {
    for_each_task(
        *problem, [&](const Task& task) { forward_task(*problem, task, *query, *key, *value, out, sums); },
        [&](const Task& task) {
            fetch(*key, task.low, task.keys, task.head, problem->width);
            fetch(*value, task.low, task.keys, task.head, problem->width);
            fetch(*query, task.first, task.queries, task.head * problem->shared, problem->width);
        });
}

// The gradients have the shapes of query, key and value, without gaps.
void attention_backward(const Problem* problem, const View* query, const View* key, const View* value, const float* out,
                        const float* sums, const View* d_out, float* d_query, float* d_key, float* d_value) {
    const int64_t heads = problem->heads * problem->shared;
    const View made{const_cast<float*>(out), heads * problem->width, problem->width};
    for_each_task(
        *problem,
        [&](const Task& task) {
            backward_task(*problem, task, *query, *key, *value, out, sums, *d_out, d_query, d_key, d_value);
        },
        [&](const Task& task) {
            fetch(*key, task.low, task.keys, task.head, problem->width);
            fetch(*value, task.low, task.keys, task.head, problem->width);
            for (const View* view : {query, d_out, &made})
                fetch(*view, task.first, task.queries, task.head * problem->shared, problem->width);
        });
}

// --- dropout, residual, layer normalisation ----------------------------------------------------------------

struct Norm {
    int64_t rows, width, parts, threads;
    float eps, kept;
    uint64_t seed;
    uint32_t threshold;
};

// out = normal * weight + bias, where normal is residual + dropout(x), less its mean, times 1 / its deviation (`inverse`).
void norm_forward(const Norm* norm, const float* residual, const float* x, const float* weight, const float* bias,
                  float* out, float* normal, float* inverse) {
    const int64_t width = norm->width;
    const Dropout dropout{norm->seed, norm->threshold, norm->kept};
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(norm->threads))
    for (int64_t row = 0; row < norm->rows; row++) {
        const float *from = residual + row * width, *added = x + row * width;
        float *line = normal + row * width, *to = out + row * width;
        float total = 0.0f, squares = 0.0f;
        const auto key_of = dropout.line(row);
#pragma omp simd reduction(+ : total)
        for (int64_t d = 0; d < width; d++) {
            line[d] = from[d] + added[d] * dropout.factor(key_of, d);
            total += line[d];
        }
        const float mean = total / width;
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < width; d++) squares += (line[d] - mean) * (line[d] - mean);
        const float scale = 1.0f / std::sqrt(squares / width + norm->eps);
        inverse[row] = scale;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) {
            line[d] = (line[d] - mean) * scale;
            to[d] = line[d] * weight[d] + bias[d];
        }
    }
}

// d_weight and d_bias (parts, width) are to be summed over parts, whose number does not depend on the threads.
void norm_backward(const Norm* norm, const float* d_out, const float* normal, const float* inverse, const float* weight,
                   float* d_residual, float* d_x, float* d_weight, float* d_bias) {
    const int64_t width = norm->width;
    const Dropout dropout{norm->seed, norm->threshold, norm->kept};
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(norm->threads))
    for (int64_t part = 0; part < norm->parts; part++) {
        float *part_weight = d_weight + part * width, *part_bias = d_bias + part * width;
        std::fill_n(part_weight, width, 0.0f);
        std::fill_n(part_bias, width, 0.0f);
        for (int64_t row = norm->rows * part / norm->parts; row < norm->rows * (part + 1) / norm->parts; row++) {
            const float *given = d_out + row * width, *line = normal + row * width;
            float* to = d_residual + row * width;
            float total = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : total, along)
            for (int64_t d = 0; d < width; d++) {
                const float own = given[d] * weight[d];
                total += own;
                along += own * line[d];
                part_weight[d] += given[d] * line[d];
                part_bias[d] += given[d];
            }
            const float scale = inverse[row], mean = total / width, slope = along / width;
#pragma omp simd
            for (int64_t d = 0; d < width; d++) to[d] = scale * (given[d] * weight[d] - mean - line[d] * slope);
            const auto key_of = dropout.line(row);
#pragma omp simd
            for (int64_t d = 0; d < width; d++) d_x[row * width + d] = to[d] * dropout.factor(key_of, d);
        }
    }
}

}  // extern "C"

// --- GELU ------------------------------------------------------------------------------------------------

namespace {

// x Phi(x), and its slope, Phi(x) + x phi(x). The error function is that of Abramowitz and Stegun, 7.1.26, as in PyTorch: within
// 1.5e-7. Its exponential is that of phi, so that the slope costs next to nothing here, and the backward pass one product.
inline Vector gelu_of(Vector x, Vector& slope) {
    const Vector z = (x < 0.0f ? -x : x) * 0.707106781186547524f, t = 1.0f / (z * 0.3275911f + 1.0f);
    const Vector bell = exp2_fast(z * z * -LOG2_E);
    Vector p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vector tail = p * t * bell * 0.5f;  // Phi(-|x|)
    const Vector share = x < 0.0f ? tail : 1.0f - tail;
    slope = share + x * bell * 0.398942280401432678f;
    return x * share;
}

}  // namespace

extern "C" {

// out, and slope unless it is null, of `count` numbers.
void gelu(const float* x, int64_t count, float* out, float* slope, int64_t threads) {
    const int64_t blocks = (count + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t at = block * LANES, taken = std::min<int64_t>(LANES, count - at);
        Vector steep, given{};
        if (taken == LANES) {
            given = load(x + at);
            store(out + at, gelu_of(given, steep));
            if (slope) store(slope + at, steep);
            continue;
        }
        std::memcpy(&given, x + at, taken * sizeof(float));
        const Vector made = gelu_of(given, steep);
        std::memcpy(out + at, &made, taken * sizeof(float));
        if (slope) std::memcpy(slope + at, &steep, taken * sizeof(float));
    }
}

}  // extern "C"

#include "_step.cpp"
#include "_settled.cpp"
