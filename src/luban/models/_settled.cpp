// A block whose norms stand behind its parts, for weights that stay as they are, but for the attention itself:
//
//     before    q, k, v = x wide^T + bias                       x (T, width)
//     behind    first   = norm(x + seen out^T + bias)           seen (T, inner), what attention made of them
//               y       = norm(first + gelu(first up^T + bias) down^T + bias)
//
// and the gradients of x of both. A tile of rows goes through a whole function before the next one does, so that only what the
// backward pass reads, and the result, travel through memory; the feed-forward part some columns at a time. Weights lie in
// panels of PANEL columns, (depth, PANEL) each, as the product with them reads them.
//
// Included by _kernels.cpp, whose vectors it uses.

extern "C" {

struct Norming {
    const float *weight, *bias;
    float eps;
};

struct Settled {
    int64_t width, inner, keys, hidden, threads;  // inner: all heads of the queries, keys: those of the keys
    const float *wide, *wide_bias;                // (width, inner + 2 keys), for q, k and v at once
    const float *out, *out_bias, *up, *up_bias, *down, *down_bias;
    const float *q_back, *k_back, *v_back, *out_back, *up_back, *down_back;  // what a gradient is multiplied by
    Norming first, second;
};

// What the backward pass reads: of both norms (T, width) and (T,), of the activation its slope, (T, hidden).
struct Kept {
    float *first, *first_inverse, *second, *second_inverse, *slope;
};

}  // extern "C"

namespace {

constexpr int MOST = 128, CHUNK = 256;  // rows of a tile, and columns of the feed-forward part: they fit a near cache with its weights

// As many rows a tile as leave every thread some.
int64_t rows_of_tile(int64_t rows, int64_t threads) {
    return std::clamp<int64_t>(round_up((rows + threads - 1) / threads, TILE), TILE, MOST);
}

// C (M x PANEL) = or += A (M x depth) B (depth x PANEL).
template <int M>
inline void dense_tile(int64_t depth, const float* a, int64_t a_row, const float* b, float* c, int64_t c_row, bool add) {
    Vector sum[M][2];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < 2; v++) sum[i][v] = add ? load(c + i * c_row + v * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        const Vector low = load(b + k * PANEL), high = load(b + k * PANEL + LANES);
        for (int i = 0; i < M; i++) {
            const float left = a[i * a_row + k];
            sum[i][0] += left * low;
            sum[i][1] += left * high;
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < 2; v++) store(c + i * c_row + v * LANES, sum[i][v]);
}

// C (m x n) = or += A (m x depth) B (depth x n), n a multiple of PANEL; B's panels are `panel` floats apart.
void dense(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_row, const float* b, int64_t panel, float* c,
           int64_t c_row, bool add) {
    for (int64_t from = 0; from < n; from += PANEL, b += panel, c += PANEL) {
        int64_t i = 0;
        for (; i + TILE <= m; i += TILE) dense_tile<TILE>(depth, a + i * a_row, a_row, b, c + i * c_row, c_row, add);
        for (; i < m; i++) dense_tile<1>(depth, a + i * a_row, a_row, b, c + i * c_row, c_row, add);
    }
}

inline float total(Vector x) {
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

// out = normal * weight + bias, where normal is (line - mean) / deviation; returns 1 / deviation. `normal` may be null.
inline float normalise(const float* line, int64_t width, const Norming& norm, float* normal, float* out) {
    Vector sum{}, squares{};
    for (int64_t d = 0; d < width; d += LANES) sum += load(line + d);
    const float mean = total(sum) / width;
    for (int64_t d = 0; d < width; d += LANES) {
        const Vector rest = load(line + d) - mean;
        squares += rest * rest;
    }
    const float inverse = 1.0f / std::sqrt(total(squares) / width + norm.eps);
    for (int64_t d = 0; d < width; d += LANES) {
        const Vector value = (load(line + d) - mean) * inverse;
        if (normal) store(normal + d, value);
        store(out + d, value * load(norm.weight + d) + load(norm.bias + d));
    }
    return inverse;
}

// The gradient of what was normalised, of that of what came of it.
inline void normalise_back(const float* given, const float* normal, float inverse, int64_t width, const float* weight,
                           float* out) {
    Vector sum{}, along{};
    for (int64_t d = 0; d < width; d += LANES) {
        const Vector own = load(given + d) * load(weight + d);
        sum += own;
        along += own * load(normal + d);
    }
    const float mean = total(sum) / width, slope = total(along) / width;
    for (int64_t d = 0; d < width; d += LANES)
        store(out + d, inverse * (load(given + d) * load(weight + d) - mean - load(normal + d) * slope));
}

// Call `run(from, m)` for every tile of rows, on the threads asked for.
template <typename Run>
void for_each_tile(const Settled& of, int64_t rows, Run run) {
    const int64_t most = rows_of_tile(rows, of.threads);
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(of.threads))
    for (int64_t from = 0; from < rows; from += most) run(from, std::min(most, rows - from));
}

// A thread's memory of a tile, from `memory`.
struct Tile {
    float *one, *other, *inside;  // (MOST, width) twice, (MOST, CHUNK)

    explicit Tile(int64_t width) {
        memory.begin(MOST * (2 * width + CHUNK) + 64);
        one = memory.take(MOST * width);
        other = memory.take(MOST * width);
        inside = memory.take(MOST * CHUNK);
    }
};

}  // namespace

extern "C" {

int64_t panel_width() { return PANEL; }

// qkv (T, inner + 2 keys) of x.
void before_forward(const Settled* of, int64_t rows, const float* x, float* qkv) {
    const int64_t width = of->width, all = of->inner + 2 * of->keys;
    for_each_tile(*of, rows, [&](int64_t top, int64_t m) {
        dense(m, all, width, x + top * width, width, of->wide, width * PANEL, qkv + top * all, all, false);
        for (int64_t i = top; i < top + m; i++)
            for (int64_t d = 0; d < all; d += LANES) store(qkv + i * all + d, load(qkv + i * all + d) + load(of->wide_bias + d));
    });
}

// d_x += what q, k and v, without gaps, had of x.
void before_backward(const Settled* of, int64_t rows, const float* d_q, const float* d_k, const float* d_v, float* d_x) {
    const int64_t width = of->width, inner = of->inner, keys = of->keys;
    for_each_tile(*of, rows, [&](int64_t top, int64_t m) {
        float* to = d_x + top * width;
        dense(m, width, inner, d_q + top * inner, inner, of->q_back, inner * PANEL, to, width, true);
        dense(m, width, keys, d_k + top * keys, keys, of->k_back, keys * PANEL, to, width, true);
        dense(m, width, keys, d_v + top * keys, keys, of->v_back, keys * PANEL, to, width, true);
    });
}

// y (T, width) of seen and x; `kept` is null where no gradient is wanted.
void behind_forward(const Settled* of, int64_t rows, const float* seen, const float* x, float* y, const Kept* kept) {
    const int64_t width = of->width, inner = of->inner, hidden = of->hidden;
    for_each_tile(*of, rows, [&](int64_t top, int64_t m) {
        const Tile tile(width);
        float *sum = tile.one, *first = tile.other;
        dense(m, width, inner, seen + top * inner, inner, of->out, inner * PANEL, sum, width, false);
        for (int64_t i = 0; i < m; i++) {
            float* line = sum + i * width;
            const float* given = x + (top + i) * width;
            for (int64_t d = 0; d < width; d += LANES)
                store(line + d, load(line + d) + load(of->out_bias + d) + load(given + d));
            float* normal = kept ? kept->first + (top + i) * width : nullptr;
            const float inverse = normalise(line, width, of->first, normal, first + i * width);
            if (kept) kept->first_inverse[top + i] = inverse;
        }
        for (int64_t from = 0; from < hidden; from += CHUNK) {
            const int64_t taken = std::min<int64_t>(CHUNK, hidden - from);
            dense(m, taken, width, first, width, of->up + from * width, width * PANEL, tile.inside, CHUNK, false);
            for (int64_t i = 0; i < m; i++) {
                float* line = tile.inside + i * CHUNK;
                for (int64_t j = 0; j < taken; j += LANES) {
                    Vector slope;
                    store(line + j, gelu_of(load(line + j) + load(of->up_bias + from + j), slope));
                    if (kept) store(kept->slope + (top + i) * hidden + from + j, slope);
                }
            }
            dense(m, width, taken, tile.inside, CHUNK, of->down + from * PANEL, hidden * PANEL, sum, width, from > 0);
        }
        for (int64_t i = 0; i < m; i++) {
            float* line = sum + i * width;
            for (int64_t d = 0; d < width; d += LANES)
                store(line + d, load(line + d) + load(of->down_bias + d) + load(first + i * width + d));
            float* normal = kept ? kept->second + (top + i) * width : nullptr;
            const float inverse = normalise(line, width, of->second, normal, y + (top + i) * width);
            if (kept) kept->second_inverse[top + i] = inverse;
        }
    });
}

// The gradients of seen and of x, of that of y.
void behind_backward(const Settled* of, int64_t rows, const float* d_y, const Kept* kept, float* d_seen, float* d_x) {
    const int64_t width = of->width, inner = of->inner, hidden = of->hidden;
    for_each_tile(*of, rows, [&](int64_t top, int64_t m) {
        const Tile tile(width);
        float *first = tile.one, *second = tile.other;
        for (int64_t i = 0; i < m; i++)
            normalise_back(d_y + (top + i) * width, kept->second + (top + i) * width, kept->second_inverse[top + i], width,
                           of->second.weight, second + i * width);
        for (int64_t from = 0; from < hidden; from += CHUNK) {
            const int64_t taken = std::min<int64_t>(CHUNK, hidden - from);
            dense(m, taken, width, second, width, of->down_back + from * width, width * PANEL, tile.inside, CHUNK, false);
            for (int64_t i = 0; i < m; i++) {
                float* line = tile.inside + i * CHUNK;
                const float* slope = kept->slope + (top + i) * hidden + from;
                for (int64_t j = 0; j < taken; j += LANES) store(line + j, load(line + j) * load(slope + j));
            }
            dense(m, width, taken, tile.inside, CHUNK, of->up_back + from * PANEL, hidden * PANEL, first, width, from > 0);
        }
        for (int64_t i = 0; i < m; i++) {
            float* line = first + i * width;
            for (int64_t d = 0; d < width; d += LANES) store(line + d, load(line + d) + load(second + i * width + d));
            normalise_back(line, kept->first + (top + i) * width, kept->first_inverse[top + i], width, of->first.weight,
                           d_x + (top + i) * width);
        }
        dense(m, inner, width, d_x + top * width, width, of->out_back, width * PANEL, d_seen + top * inner, inner, false);
    });
}

}  // extern "C"
