package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/braidnet/braid/internal/model"
)

// After an outage all that was changed meanwhile, of all kinds, is one change: no mixture of before and after is seen.
func TestOutageEndsAsOneChange(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		for _, forgotten := range []bool{false, true} {
			t.Run(fmt.Sprintf("streaming=%t,forgotten=%t", streaming, forgotten), func(t *testing.T) {
				s := newServer(t, runtime.ContentTypeProtobuf, streaming)
				const n = 50
				put := func(net int) {
					for i := range n {
						s.put(service(fmt.Sprint("s", i), fmt.Sprintf("10.%d.0.%d", net, i)))
						s.put(slice(fmt.Sprint("s", i), fmt.Sprintf("10.%d.1.%d", net, i)))
					}
				}
				put(1)
				w := follow(t, s, Options{})
				w.awaitSync()
				for round := 2; round < 5; round++ {
					s.setDown(true)
					s.closeWatches()
					asked := s.count("list readyz")
					w.await("questions whether it is back", func() bool { w.stir(); return s.count("list readyz") > asked+2 })
					put(round)
					if forgotten {
						s.forget()
					}
					var mu sync.Mutex
					var batches []map[model.Kind]int
					replayed := false
					cancel := w.store.Subscribe(func(_ uint64, list []model.Change) {
						mu.Lock()
						defer mu.Unlock()
						if !replayed {
							replayed = true
							return
						}
						kinds := map[model.Kind]int{}
						for _, c := range list {
							kinds[c.Kind]++
						}
						batches = append(batches, kinds)
						w.stir() // whoever was told of the change before this may have looked already
					})
					s.setDown(false)
					w.await("what was changed", func() bool { mu.Lock(); defer mu.Unlock(); return len(batches) > 0 })
					cancel()
					if first := batches[0]; first[model.KindService] != n || first[model.KindEndpointSlice] != n {
						t.Errorf("the first change after the outage is %v, want all %d of both kinds", first, n)
					}
				}
				put(9) // it goes on watching
				w.await("news", func() bool {
					o, ok := w.store.Get(model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "shop", Name: "s7"}}).(*model.Service)
					return ok && o.ClusterIPs[0].String() == "10.9.0.7"
				})
			})
		}
	}
}

// A kind that goes on failing keeps the others back for a while only.
func TestGatheringEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gathering{store: model.NewStore()}
		pods, services := &sink{gather: g, kind: model.KindPod}, &sink{gather: g, kind: model.KindService}
		set := func(name string) []model.Update {
			return []model.Update{model.Set(&model.Service{Origin: model.Origin{Ref: model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "shop", Name: name}}}})}
		}
		g.begin([]*sink{pods, services})
		time.Sleep(gatherFor / 2)
		g.begin([]*sink{pods, services}) // another outage does not prolong it
		services.apply(set("a"), true)
		services.apply(set("b"), false)
		if n := g.store.Len(model.KindService); n != 0 {
			t.Errorf("%d services while pods are missing", n)
		}
		time.Sleep(gatherFor)
		if n := g.store.Len(model.KindService); n != 2 {
			t.Errorf("%d services at the end, want 2", n)
		}
		services.apply(set("c"), false)
		if n := g.store.Len(model.KindService); n != 3 {
			t.Errorf("%d services, want the third at once", n)
		}
		g.begin([]*sink{pods})
		pods.apply(set("d"), true)
		if n := g.store.Len(model.KindService); n != 4 {
			t.Errorf("%d services after all lists, want 4 at once", n)
		}
	})
}

// An outage is asked about once for all, at most every three seconds, and one that is over at the first question has cost
// nobody a list.
func TestOutageIsWaitedForTogether(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer error // of the server that is back
		away   time.Duration
		relist bool
		limit  time.Duration
	}{
		{"a moment", nil, 0, false, 2 * defaultRetry},
		{"minutes", nil, 5 * time.Minute, true, 5*time.Minute + 2*maxPause},
		{"may not ask", apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no")), time.Minute, true, time.Minute + 2*maxPause},
		{"never says it is ready", apierrors.NewInternalError(errors.New("etcd failed")), time.Minute, true, time.Minute + 2*(unready+1)*maxPause},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, asked, relisted := time.Now(), 0, 0
				o := &outage{retry: defaultRetry, over: func() { relisted++ }, ready: func(context.Context) error {
					if asked++; time.Since(begin) < tc.away {
						return errors.New("connection refused")
					}
					return tc.answer
				}}
				var wg sync.WaitGroup
				for range 7 {
					wg.Go(func() { o.wait(t.Context(), t.Context()) })
				}
				wg.Wait()
				took := time.Since(begin)
				if took < tc.away || took > tc.limit || (relisted == 1) != tc.relist || asked > int(took/defaultRetry) {
					t.Errorf("over after %s with %d questions, read anew %d times; want at most %s, and read anew: %t", took, asked, relisted, tc.limit, tc.relist)
				}
			})
		})
	}
}

func TestAbsent(t *testing.T) {
	gateway := apierrors.NewGenericServerResponse(http.StatusBadGateway, "GET", schema.GroupResource{}, "", "", 0, true)
	for err, want := range map[error]bool{nil: false, errors.New("connection refused"): true, gateway: true,
		apierrors.NewServiceUnavailable("x"): true, fmt.Errorf("watch: %w", apierrors.NewUnauthorized("x")): false,
		apierrors.NewTooManyRequests("x", 1): false, apierrors.NewInternalError(errors.New("x")): false, apierrors.NewResourceExpired("x"): false} {
		if got := absent(err); got != want {
			t.Errorf("%v: absent %t, want %t", err, got, want)
		}
	}
}
