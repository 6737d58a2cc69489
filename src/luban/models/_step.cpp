// One token a row through a whole causal Transformer, from embedded tokens to logits, for a CPU, weights in fp32 or int8.
//
// With few rows every weight is used a few times only, so that reading the weights from memory is what takes the time. A pass
// is one parallel region; its phases are parted by barriers, and within a phase threads take pieces as they come, so that one
// that the system has put aside holds up no more than its piece. Each number is made by one thread in one order: the result
// does not depend on how many there are.
//
//     phase     reads                    makes                       split by
//     1         x                        norm, queries, keys, values rows of the matrices
//     2         queries, keys, values    heads (B, inner)            row of the batch and head of the keys
//     3         heads                    x += out                    rows of the matrix
//     4         x                        norm, inside                rows of the matrices
//     5         inside                   x += down                   rows of the matrix
//
// int8 weights have one scale a row; products are summed in fp32, so that only the weights are rounded.
//
// Included by _kernels.cpp, whose vectors it uses.

#include <omp.h>
#include <sched.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <vector>

namespace {

struct Matrix {
    const void* weight;  // (rows, columns)
    const float* scale;  // (rows,) where the weights are int8, null where they are fp32
    const float* bias;   // (rows,) or null
    int64_t rows, columns;
};

struct Scaling {
    const float *weight, *bias;  // bias is null for a norm by the root mean square
};

struct Layer {
    Scaling attention_norm, feed_norm, query_norm, key_norm;
    Matrix query, key, value, out, gate, up, down;
    float *keys, *values;  // (B, key heads, capacity, d)
};

struct Transformer {
    const Layer* layers;
    int64_t count, width, heads, key_heads, head_size, inside, activation, threads;
    float eps;
    Scaling last_norm;
    Matrix vocabulary;
};

struct Tokens {
    int64_t rows, capacity;
    const int64_t* positions;       // (B,)
    const float *cosines, *sines;   // (B, d / 2), or null where positions are in the embedding
    float *x, *logits;              // (B, D), (B, V)
};

enum Activation : int64_t { SILU, GELU, GELU_TANH, RELU };

inline float sum_of(Vector x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

inline float sigmoid(float x) {
    float e = exp2_fast(-std::fabs(x) * LOG2_E);
    return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

inline float activated(int64_t kind, float x) {
    switch (kind) {
        case SILU: return x * sigmoid(x);
        case GELU: return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
        case GELU_TANH: return x * sigmoid(2 * 0.79788456080286536f * (x + 0.044715f * x * x * x));
        default: return x > 0 ? x : 0.0f;
    }
}

inline float product(int64_t n, const float* a, const float* b) {
    Vector sum[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sum[0] += load(a + i) * load(b + i);
        sum[1] += load(a + i + LANES) * load(b + i + LANES);
    }
    float result = sum_of(sum[0] + sum[1]);
    for (; i < n; i++) result += a[i] * b[i];
    return result;
}

void normalise(const float* x, float* to, int64_t n, Scaling by, float eps) {
    float mean = 0, square = 0;
    if (by.bias) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    float inverse = 1 / std::sqrt(square / n + eps);
    for (int64_t i = 0; i < n; i++) to[i] = (x[i] - mean) * inverse * by.weight[i] + (by.bias ? by.bias[i] : 0.0f);
}

void rotate(float* x, int64_t size, const float* cosines, const float* sines) {
    for (int64_t i = 0, half = size / 2; i < half; i++) {
        float left = x[i], right = x[i + half];
        x[i] = left * cosines[i] - right * sines[i];
        x[i + half] = right * cosines[i] + left * sines[i];
    }
}

// --- matrix times vectors ----------------------------------------------------------------------------------

constexpr int VECTORS = 4;  // at a time: each weight that is read is used for so many
constexpr int AHEAD = 8192;  // bytes: what is asked of memory before it is needed, beyond what the processor foresees
constexpr int ROWS = LANES == 16 ? 4 : 2;  // of a matrix, where there are enough vectors to make the arithmetic count

inline Vector widened(const float* from) { return load(from); }
inline Vector widened(const int8_t* from) {  // by intrinsics, because GCC makes of __builtin_convertvector ten times as much
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    Vector result;
    for (int i = 0; i < LANES; i++) result[i] = from[i];
    return result;
#endif
}

// One row of a matrix at a time: memory is read in one stream, in which the processor sees what comes next; four streams take
// nearly twice as long.
template <int N, class Weight>
inline void dots(int64_t columns, const Weight* weight, const float* x, float* result) {
    constexpr int UNROLLED = N == 1 ? 4 : 2;  // so many sums that none waits for the one before
    Vector sum[N][UNROLLED] = {};
    int64_t i = 0;
    for (; i + UNROLLED * LANES <= columns; i += UNROLLED * LANES) {
        __builtin_prefetch(reinterpret_cast<const char*>(weight + i) + AHEAD);
        for (int u = 0; u < UNROLLED; u++) {
            Vector factor = widened(weight + i + u * LANES);
            for (int n = 0; n < N; n++) sum[n][u] += factor * load(x + n * columns + i + u * LANES);
        }
    }
    for (int n = 0; n < N; n++) {
        for (int u = 1; u < UNROLLED; u++) sum[n][0] += sum[n][u];
        result[n] = sum_of(sum[n][0]);
        for (int64_t j = i; j < columns; j++) result[n] += weight[j] * x[n * columns + j];
    }
}

template <class Weight>
inline void few_dots(int64_t vectors, int64_t columns, const Weight* weight, const float* x, float* result) {
    switch (vectors) {
        case 1: return dots<1>(columns, weight, x, result);
        case 2: return dots<2>(columns, weight, x, result);
        case 3: return dots<3>(columns, weight, x, result);
        default: return dots<VECTORS>(columns, weight, x, result);
    }
}

// With many vectors the arithmetic takes the time: each value that is loaded is used for several sums.
template <class Weight>
inline void tile_of(int64_t columns, const Weight* weight, const float* x, float (*result)[VECTORS]) {
    Vector sum[ROWS][VECTORS] = {};
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) {
        Vector factor[ROWS];
        for (int r = 0; r < ROWS; r++) factor[r] = widened(weight + r * columns + i);
        for (int n = 0; n < VECTORS; n++) {
            Vector own = load(x + n * columns + i);
            for (int r = 0; r < ROWS; r++) sum[r][n] += factor[r] * own;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < VECTORS; n++) {
            result[r][n] = sum_of(sum[r][n]);
            for (int64_t j = i; j < columns; j++) result[r][n] += weight[r * columns + j] * x[n * columns + j];
        }
}

// give(row of the matrix, vector, value) for rows begin .. end and all vectors, (batch, columns).
template <class Weight, class Give>
inline void multiply_typed(const Matrix& by, int64_t begin, int64_t end, const float* x, int64_t batch, Give give) {
    const Weight* weight = static_cast<const Weight*>(by.weight);
    const int64_t columns = by.columns;
    float result[ROWS][VECTORS];
    for (int64_t row = begin; row < end; row += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, end - row);
        for (int64_t first = 0; first < batch; first += VECTORS) {
            const int64_t vectors = std::min<int64_t>(VECTORS, batch - first);
            const float* from = x + first * columns;
            if (vectors == VECTORS && batch > VECTORS && rows == ROWS)
                tile_of(columns, weight + row * columns, from, result);
            else
                for (int64_t r = 0; r < rows; r++)
                    few_dots(vectors, columns, weight + (row + r) * columns, from, result[r]);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t n = 0; n < vectors; n++) {
                    float value = by.scale ? result[r][n] * by.scale[row + r] : result[r][n];
                    give(row + r, first + n, by.bias ? value + by.bias[row + r] : value);
                }
        }
    }
}

template <class Give>
inline void multiply_rows(const Matrix& by, int64_t begin, int64_t end, const float* x, int64_t batch, Give give) {
    if (by.scale)
        multiply_typed<int8_t>(by, begin, end, x, batch, give);
    else
        multiply_typed<float>(by, begin, end, x, batch, give);
}

// --- the pass --------------------------------------------------------------------------------------------------

// Where threads wait for each other. OpenMP's own barrier spins for milliseconds, and takes the processor from the thread it
// waits for when something else runs on the machine; this one gives way after some microseconds.
struct Barrier {
    int64_t waiting = 0, passed = 0;

    void wait(int64_t threads) {
        int64_t before = __atomic_load_n(&passed, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&waiting, 1, __ATOMIC_ACQ_REL) == threads) {
            __atomic_store_n(&waiting, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&passed, before + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int turn = 0; __atomic_load_n(&passed, __ATOMIC_ACQUIRE) == before; turn++)
            if (turn > 10000) sched_yield();
    }
};

struct Shared {
    Barrier barrier;
    std::vector<float> queries, keys, values, heads, inside;
    std::vector<int64_t> taken;  // how far each phase is
};

// work(begin, end) for pieces of 0 .. total, each by whichever thread is free.
template <class Work>
inline void in_pieces(int64_t* taken, int64_t total, int64_t piece, Work work) {
    for (;;) {
        int64_t begin = __atomic_fetch_add(taken, piece, __ATOMIC_RELAXED);
        if (begin >= total) return;
        work(begin, std::min(begin + piece, total));
    }
}

// Rows of a matrix that make a piece worth the taking.
inline int64_t piece_of(const Matrix& matrix) {
    int64_t bytes = matrix.columns * (matrix.scale ? 1 : 4);
    return round_up(std::max<int64_t>(1, 32768 / bytes), ROWS);
}

void attend_head(const Transformer& model, const Layer& layer, const Tokens& tokens, Shared& shared, int64_t row,
                 int64_t head, std::vector<float>& scores) {
    int64_t size = model.head_size, group = model.heads / model.key_heads, step = model.key_heads * size;
    int64_t place = tokens.positions[row], seen = place + 1;
    float* query = shared.queries.data() + (row * model.heads + head * group) * size;
    float* key = shared.keys.data() + row * step + head * size;
    const float* value = shared.values.data() + row * step + head * size;
    if (layer.query_norm.weight) {
        for (int64_t g = 0; g < group; g++)
            normalise(query + g * size, query + g * size, size, layer.query_norm, model.eps);
        normalise(key, key, size, layer.key_norm, model.eps);
    }
    if (tokens.cosines) {
        const float *cosines = tokens.cosines + row * size / 2, *sines = tokens.sines + row * size / 2;
        for (int64_t g = 0; g < group; g++) rotate(query + g * size, size, cosines, sines);
        rotate(key, size, cosines, sines);
    }
    const int64_t begin = (row * model.key_heads + head) * tokens.capacity * size;
    float *keys = layer.keys + begin, *values = layer.values + begin;
    std::copy(key, key + size, keys + place * size);
    std::copy(value, value + size, values + place * size);

    scores.resize(group * seen);
    float scale = LOG2_E / std::sqrt(static_cast<float>(size));
    for (int64_t t = 0; t < seen; t++)
        for (int64_t g = 0; g < group; g++)
            scores[g * seen + t] = scale * product(size, query + g * size, keys + t * size);
    float* out = shared.heads.data() + (row * model.heads + head * group) * size;
    std::fill(out, out + group * size, 0.0f);
    for (int64_t g = 0; g < group; g++) {
        float *own = scores.data() + g * seen, most = *std::max_element(own, own + seen), sum = 0;
        for (int64_t t = 0; t < seen; t++) own[t] = exp2_fast(own[t] - most);
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < seen; t++) sum += own[t];
        for (int64_t t = 0; t < seen; t++) own[t] /= sum;
    }
    for (int64_t t = 0; t < seen; t++)
        for (int64_t g = 0; g < group; g++) {
            float weight = scores[g * seen + t], *to = out + g * size;
            const float* from = values + t * size;
            for (int64_t i = 0; i < size; i++) to[i] += weight * from[i];
        }
}

void run(const Transformer& model, const Tokens& tokens, Shared& shared) {
    int64_t batch = tokens.rows, width = model.width, kv = model.key_heads * model.head_size;
    int64_t inner = model.heads * model.head_size;
    const int64_t threads = omp_get_num_threads();
    std::vector<float> normal(batch * width), scores;
    int64_t* taken = shared.taken.data();
    auto normalised = [&](Scaling by) {  // by every thread for itself, which is cheaper than a barrier
        for (int64_t row = 0; row < batch; row++)
            normalise(tokens.x + row * width, normal.data() + row * width, width, by, model.eps);
        return normal.data();
    };
    auto into = [&](const Matrix& matrix, int64_t begin, int64_t end, const float* x, float* to) {
        multiply_rows(matrix, begin, end, x, batch, [&](int64_t row, int64_t n, float v) { to[n * matrix.rows + row] = v; });
    };
    auto add = [&](const Matrix& matrix, const float* x) {
        in_pieces(taken++, matrix.rows, piece_of(matrix), [&](int64_t begin, int64_t end) {
            multiply_rows(matrix, begin, end, x, batch,
                          [&](int64_t row, int64_t n, float v) { tokens.x[n * width + row] += v; });
        });
        shared.barrier.wait(threads);
    };
    for (int64_t l = 0; l < model.count; l++) {
        const Layer& layer = model.layers[l];
        const float* x = normalised(layer.attention_norm);
        // Pieces of queries, keys and values in one count: rows 0 .. inner, .. inner + kv, .. inner + 2 kv.
        in_pieces(taken++, inner + 2 * kv, piece_of(layer.query), [&](int64_t begin, int64_t end) {
            auto part = [&](const Matrix& matrix, int64_t first, float* to) {
                int64_t from = std::max(begin - first, int64_t{0}), until = std::min(end - first, matrix.rows);
                if (from < until) into(matrix, from, until, x, to);
            };
            part(layer.query, 0, shared.queries.data());
            part(layer.key, inner, shared.keys.data());
            part(layer.value, inner + kv, shared.values.data());
        });
        shared.barrier.wait(threads);
        in_pieces(taken++, batch * model.key_heads, 1, [&](int64_t task, int64_t) {
            attend_head(model, layer, tokens, shared, task / model.key_heads, task % model.key_heads, scores);
        });
        shared.barrier.wait(threads);
        add(layer.out, shared.heads.data());
        x = normalised(layer.feed_norm);
        in_pieces(taken++, model.inside, piece_of(layer.up), [&](int64_t begin, int64_t end) {
            float* to = shared.inside.data();
            into(layer.up, begin, end, x, to);
            if (layer.gate.weight)
                multiply_rows(layer.gate, begin, end, x, batch, [&](int64_t row, int64_t n, float v) {
                    to[n * model.inside + row] *= activated(model.activation, v);
                });
            else
                for (int64_t n = 0; n < batch; n++)
                    for (int64_t row = begin; row < end; row++) {
                        float& v = to[n * model.inside + row];
                        v = activated(model.activation, v);
                    }
        });
        shared.barrier.wait(threads);
        add(layer.down, shared.inside.data());
    }
    const float* x = normalised(model.last_norm);
    in_pieces(taken++, model.vocabulary.rows, piece_of(model.vocabulary), [&](int64_t begin, int64_t end) {
        into(model.vocabulary, begin, end, x, tokens.logits);
    });
}

}  // namespace

extern "C" void decode_step(const Transformer* model, const Tokens* tokens) {
    int64_t batch = tokens->rows, kv = model->key_heads * model->head_size, inner = model->heads * model->head_size;
    Shared shared;
    shared.queries.resize(batch * inner);
    shared.heads.resize(batch * inner);
    shared.keys.resize(batch * kv);
    shared.values.resize(batch * kv);
    shared.inside.resize(batch * model->inside);
    shared.taken.resize(5 * model->count + 1);
#pragma omp parallel num_threads(static_cast<int>(model->threads))
    run(*model, *tokens, shared);
}

// out (batch, rows) = x (batch, columns) matrix', for few vectors.
extern "C" void few_products(const Matrix* matrix, const float* x, int64_t batch, float* out, int64_t threads) {
    const int64_t piece = piece_of(*matrix), rows = matrix->rows;
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads))
    for (int64_t begin = 0; begin < rows; begin += piece)
        multiply_rows(*matrix, begin, std::min(begin + piece, rows), x, batch,
                      [&](int64_t row, int64_t n, float v) { out[n * rows + row] = v; });
}
