package names

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

// BenchmarkMemory reports what the store and the index keep of a cluster, per service with its slice
// and per endpoint address.
func BenchmarkMemory(b *testing.B) {
	const services, endpoints = 5000, 10
	for b.Loop() {
		bare := kept(services, 0)
		b.ReportMetric(float64(bare)/services, "B/service")
		b.ReportMetric(float64(kept(services, endpoints)-bare)/(services*endpoints), "B/endpoint")
	}
}

// kept is the heap, in bytes, of a store and an index of services with so many endpoints each.
func kept(services, endpoints int) int64 {
	before := heap()
	store := model.NewStore()
	x := follow(store)
	nt.Apply(store, nt.Namespace("prod"))
	for i := range services {
		name := fmt.Sprintf("service-%d", i)
		var list []model.Endpoint
		for j := range endpoints {
			e := nt.Ready(fmt.Sprintf("10.%d.%d.%d", 128+i/6250, i/25%250, i%25*10+j), "", fmt.Sprintf("%s-7c9d8f6b5d-%05d", name, j))
			e.Node = fmt.Sprintf("node-%d", j)
			list = append(list, e)
		}
		for _, o := range []model.Object{
			nt.Service("prod/"+name, fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250), "http/TCP/80 metrics/TCP/9090"),
			nt.Slice("prod/"+name+"-x7k2p", name, "http/TCP/8080 metrics/TCP/9090", list...),
		} {
			nt.Apply(store, store.Known(Trim(o)))
		}
	}
	after := heap()
	runtime.KeepAlive(x)
	runtime.KeepAlive(store)
	return after - before
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // the first may leave what the one before it had not swept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
