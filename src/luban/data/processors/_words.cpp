// Words to tokens, one word after the other.
//
// Byte-pair encoding (Sennrich et al., 2016): as long as two neighbours have a merge, the pair whose merge was learnt first, and of
// these the leftmost, becomes one token. Words are short, so that looking at all of a word's pairs is quicker than keeping them in
// order; a long one, where that would take the square of its length, goes through a heap.
//
// Word pieces (Wu et al., 2016; as in BERT): the longest token that begins a word, then the longest that goes on, and so forth.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

extern "C" {

struct Merges {
    const int32_t* first;   // the token of each byte, (256,)
    const int64_t* keys;    // open hash table of pairs: left << 32 | right, -1 where nothing is, (slots,)
    const int32_t* ranks;   // the rank of each pair, (slots,)
    const int32_t* merged;  // the token that each rank makes
    uint64_t mix;
    int64_t shift, mask;
};

struct Pieces {
    const uint8_t* bytes;   // of all tokens, those that go on without their prefix
    const int64_t* starts;  // of each token in `bytes`, (count + 1,)
    const uint8_t* inside;  // whether a token goes on, (count,)
    const int32_t* ids;     // (count,)
    int32_t* table;         // open hash table of tokens, -1 where nothing is, (mask + 1,)
    int64_t count, mask;
    int64_t longest;  // bytes of a token
    int64_t most;     // characters of a word that is parted
    int32_t unknown;
};

}  // extern "C"

namespace {

// --- byte pairs ----------------------------------------------------------------------------------------------

constexpr int32_t NONE = std::numeric_limits<int32_t>::max();  // the rank of a pair without a merge
constexpr int64_t SHORT = 64;                                   // bytes of a word that is looked at as a whole

int32_t rank_of(const Merges& merges, int32_t left, int32_t right) {
    const int64_t key = static_cast<int64_t>(left) << 32 | right;
    int64_t slot = static_cast<int64_t>((static_cast<uint64_t>(key) * merges.mix) >> merges.shift);
    while (merges.keys[slot] >= 0) {
        if (merges.keys[slot] == key) return merges.ranks[slot];
        slot = (slot + 1) & merges.mask;
    }
    return NONE;
}

// Both write a word's tokens to `out`, which has room for one a byte, and return how many there are.

int64_t merge_short(const Merges& merges, const uint8_t* bytes, int64_t count, int32_t* out) {
    int32_t ranks[SHORT];  // of a token with the one after it
    for (int64_t i = 0; i < count; i++) out[i] = merges.first[bytes[i]];
    for (int64_t i = 0; i + 1 < count; i++) ranks[i] = rank_of(merges, out[i], out[i + 1]);
    while (count > 1) {
        const int64_t place = std::min_element(ranks, ranks + count - 1) - ranks;  // the leftmost of equal ones
        if (ranks[place] == NONE) break;
        out[place] = merges.merged[ranks[place]];
        std::copy(out + place + 2, out + count, out + place + 1);
        std::copy(ranks + place + 1, ranks + count - 1, ranks + place);
        count--;
        if (place > 0) ranks[place - 1] = rank_of(merges, out[place - 1], out[place]);
        if (place + 1 < count) ranks[place] = rank_of(merges, out[place], out[place + 1]);
    }
    return count;
}

int64_t merge_long(const Merges& merges, const uint8_t* bytes, int64_t count, int32_t* out) {
    using Pair = std::pair<int32_t, int64_t>;  // rank, place of the left token
    std::vector<int32_t> tokens(count), ranks(count, NONE);
    std::vector<int64_t> before(count), after(count);  // neighbours; a token that was merged away has rank NONE
    std::priority_queue<Pair, std::vector<Pair>, std::greater<Pair>> open;
    for (int64_t i = 0; i < count; i++) {
        tokens[i] = merges.first[bytes[i]];
        before[i] = i - 1;
        after[i] = i + 1;
    }
    const auto look = [&](int64_t i) {
        ranks[i] = after[i] < count ? rank_of(merges, tokens[i], tokens[after[i]]) : NONE;
        if (ranks[i] != NONE) open.emplace(ranks[i], i);
    };
    for (int64_t i = 0; i < count; i++) look(i);
    while (!open.empty()) {
        const auto [rank, place] = open.top();
        open.pop();
        if (ranks[place] != rank) continue;  // one of the two has been merged since
        const int64_t gone = after[place];
        tokens[place] = merges.merged[rank];
        ranks[gone] = NONE;
        after[place] = after[gone];
        if (after[gone] < count) before[after[gone]] = place;
        look(place);
        if (before[place] >= 0) look(before[place]);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i = after[i]) out[kept++] = tokens[i];
    return kept;
}

// --- word pieces -------------------------------------------------------------------------------------------

constexpr uint64_t BEGIN[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};  // of a token that begins a word, or goes on

inline uint64_t stirred(uint64_t hash, uint8_t byte) { return (hash ^ byte) * 0x100000001b3u; }  // FNV-1a
inline int64_t slot_of(const Pieces& pieces, uint64_t hash) { return (hash ^ hash >> 29) & pieces.mask; }

int32_t find(const Pieces& pieces, uint64_t hash, bool inside, const uint8_t* bytes, int64_t length) {
    for (int64_t slot = slot_of(pieces, hash); pieces.table[slot] >= 0; slot = (slot + 1) & pieces.mask) {
        const int32_t one = pieces.table[slot];
        const int64_t start = pieces.starts[one];
        if (pieces.starts[one + 1] - start == length && pieces.inside[one] == inside &&
            !std::memcmp(pieces.bytes + start, bytes, length))
            return one;
    }
    return -1;
}

inline bool goes_on(uint8_t byte) { return (byte & 0xc0) == 0x80; }  // within a character of UTF-8

int64_t part(const Pieces& pieces, const uint8_t* bytes, int64_t count, std::vector<uint64_t>& hashes, int32_t* out) {
    int64_t characters = 0, made = 0;
    for (int64_t i = 0; i < count; i++) characters += !goes_on(bytes[i]);
    for (int64_t start = 0; start < count && characters <= pieces.most;) {
        const int64_t room = std::min(count - start, pieces.longest);
        hashes[0] = BEGIN[start > 0];
        for (int64_t i = 0; i < room; i++) hashes[i + 1] = stirred(hashes[i], bytes[start + i]);
        int32_t found = -1;
        int64_t taken = room;
        for (; taken > 0 && found < 0; taken--)
            if (start + taken == count || !goes_on(bytes[start + taken]))
                found = find(pieces, hashes[taken], start > 0, bytes + start, taken);
        if (found < 0) break;
        out[made++] = pieces.ids[found];
        start += taken + 1;
        if (start == count) return made;
    }
    out[0] = pieces.unknown;  // a word that no tokens make up, or too long a one, is unknown as a whole
    return 1;
}

}  // namespace

extern "C" {

// tokens: of all words without gaps, with room for one a byte; counts: of each word.
void merge(const Merges* merges, const uint8_t* bytes, const int64_t* lengths, int64_t words, int32_t* tokens,
           int64_t* counts) {
    for (int64_t word = 0; word < words; word++) {
        const auto one = lengths[word] <= SHORT ? merge_short : merge_long;
        counts[word] = one(*merges, bytes, lengths[word], tokens);
        bytes += lengths[word];
        tokens += counts[word];
    }
}

// Fill the table of tokens.
void learn_pieces(const Pieces* pieces) {
    std::fill(pieces->table, pieces->table + pieces->mask + 1, -1);
    for (int64_t one = 0; one < pieces->count; one++) {
        uint64_t hash = BEGIN[pieces->inside[one]];
        for (int64_t i = pieces->starts[one]; i < pieces->starts[one + 1]; i++) hash = stirred(hash, pieces->bytes[i]);
        int64_t slot = slot_of(*pieces, hash);
        while (pieces->table[slot] >= 0) slot = (slot + 1) & pieces->mask;
        pieces->table[slot] = static_cast<int32_t>(one);
    }
}

// As `merge`; words are UTF-8.
void part_words(const Pieces* pieces, const uint8_t* bytes, const int64_t* lengths, int64_t words, int32_t* tokens,
                int64_t* counts) {
    std::vector<uint64_t> hashes(pieces->longest + 1);
    for (int64_t word = 0; word < words; word++) {
        counts[word] = part(*pieces, bytes, lengths[word], hashes, tokens);
        bytes += lengths[word];
        tokens += counts[word];
    }
}

}  // extern "C"
