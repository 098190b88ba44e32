package names

import (
	"hash/maphash"
	"iter"
	"maps"
	"sync/atomic"

	"github.com/braidnet/braid/internal/model"
)

// table is a map for one writer and readers that never wait: a reader looks into an immutable shard,
// and the writer replaces the shards that a batch has touched. A change costs a copy of its shard, and
// so a small part of the whole. Set hash and seed before use.
type table[K comparable, V any] struct {
	hash   func(maphash.Seed, K) uint64
	seed   maphash.Seed
	shards [shardCount]atomic.Pointer[map[K]V]
	next   map[uint64]map[K]V // shards to be published
}

// shardCount is large enough for a shard of a large cluster to be small, and small enough for all of
// them to be few.
const shardCount = 256

func hashKey(seed maphash.Seed, k model.Key) uint64 {
	return maphash.String(seed, k.Name) + 31*maphash.String(seed, k.Namespace)
}

func (t *table[K, V]) shard(k K) uint64 { return t.hash(t.seed, k) % shardCount }

// get returns what was published last.
func (t *table[K, V]) get(k K) (v V, ok bool) {
	if m := t.shards[t.shard(k)].Load(); m != nil {
		v, ok = (*m)[k]
	}
	return v, ok
}

// all goes over what was published last, in no order.
func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range t.shards {
			m := t.shards[i].Load()
			if m == nil {
				continue
			}
			for k, v := range *m {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// coming returns what the next publish will show.
func (t *table[K, V]) coming(k K) (v V, ok bool) {
	if m, changed := t.next[t.shard(k)]; changed {
		v, ok = m[k]
		return v, ok
	}
	return t.get(k)
}

func (t *table[K, V]) set(k K, v V) { t.change(k)[k] = v }

func (t *table[K, V]) remove(k K) {
	if _, ok := t.coming(k); ok {
		delete(t.change(k), k)
	}
}

// change returns the shard of a key for the writer to change.
func (t *table[K, V]) change(k K) map[K]V {
	i := t.shard(k)
	if m, changed := t.next[i]; changed {
		return m
	}
	var m map[K]V
	if old := t.shards[i].Load(); old != nil {
		m = maps.Clone(*old)
	} else {
		m = map[K]V{}
	}
	if t.next == nil {
		t.next = map[uint64]map[K]V{}
	}
	t.next[i] = m
	return m
}

// publish shows readers what was changed.
func (t *table[K, V]) publish() {
	for i, m := range t.next {
		t.shards[i].Store(&m)
	}
	clear(t.next)
}
