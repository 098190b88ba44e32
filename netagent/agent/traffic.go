package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/nftables"
	"github.com/braidnet/braid/netagent/status"
)

// traffic counts in the kernel what comes through services, in tables of its own beside those of the service mode. A
// fault in it is a note, and costs no service anything.
type traffic struct {
	log      *slog.Logger
	write    *nft.Conn // the step's
	families []desired.NFTFamily
	failed   error // why the kernel has not all that is wanted; for the step

	mu      sync.Mutex // held for moments only: the step needs it
	counted map[service.Key]*service.Frontend

	reading sync.Mutex // held while the kernel lists
	read    *nft.Conn
	last    map[service.Key]status.Traffic // as of at
	at      time.Time
}

// trafficAge is how old numbers may be that are given out: a listing of all takes time in a large cluster.
const trafficAge = 5 * time.Second

func newTraffic(log *slog.Logger) (*traffic, error) {
	t := &traffic{log: log, counted: map[service.Key]*service.Frontend{}}
	var err error
	if t.write, err = nft.Open(); err != nil {
		return nil, err
	}
	if t.read, err = nft.Open(); err != nil {
		t.write.Close()
		return nil, err
	}
	for _, f := range nftables.Families {
		table := nftables.TrafficSkeleton(f)
		table.Name += "-probe"
		err := t.write.Check([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: f, Table: table.Name, Def: &table}})
		switch {
		case err == nil:
			t.families = append(t.families, f)
		case f == desired.NFTIPv4 || tools.HaveIPv6():
			t.close()
			return nil, fmt.Errorf("service-counters: this kernel cannot count (Linux 5.13 or later with nf_tables is needed, in service mode iptables too): %w", err)
		}
	}
	return t, nil
}

func (t *traffic) close() {
	t.write.Close()
	t.read.Close()
}

// replaced has exactly these frontends counted.
func (t *traffic) replaced(all []service.Frontend) {
	counted := make(map[service.Key]*service.Frontend, len(all))
	want := map[desired.NFTFamily][]desired.NFTElement{}
	for i := range all {
		counted[all[i].Key] = &all[i]
		f := nftFamily(all[i].Key)
		want[f] = append(want[f], nftables.TrafficElements(&all[i])...)
	}
	t.mu.Lock()
	t.counted = counted
	t.mu.Unlock()
	var errs []error
	for _, f := range t.families {
		have, err := t.write.Read(f, nftables.TrafficTable)
		if err == nil {
			err = t.write.Apply(nftables.TrafficChanges(f, want[f], have))
		}
		errs = append(errs, err)
	}
	t.settle(errors.Join(errs...))
}

// applied follows a change. Endpoints that come and go are none here.
func (t *traffic) applied(d service.Delta) {
	var remove, add []desired.NFTOp
	op := func(verb desired.NFTVerb, f *service.Frontend) (ops []desired.NFTOp) {
		for _, el := range nftables.TrafficElements(f) {
			ops = append(ops, desired.NFTOp{Verb: verb, Family: nftFamily(f.Key), Table: nftables.TrafficTable, Element: &el})
		}
		return ops
	}
	t.mu.Lock()
	for _, k := range d.Delete {
		if old, ok := t.counted[k]; ok {
			remove = append(remove, op(desired.NFTDeleteElement, old)...)
			delete(t.counted, k)
		}
	}
	for i := range d.Set {
		f := &d.Set[i]
		old, ok := t.counted[f.Key]
		t.counted[f.Key] = f
		if ok && old.Name() == f.Name() {
			continue
		}
		if ok { // another service has the address now, and begins at zero
			remove = append(remove, op(desired.NFTDeleteElement, old)...)
		}
		add = append(add, op(desired.NFTAddElement, f)...)
	}
	t.mu.Unlock()
	if t.failed == nil {
		t.settle(t.write.Apply(append(remove, add...)))
	}
}

// gone reports whether a table is not there at all, as after a flush.
func (t *traffic) gone() bool {
	for _, f := range t.families {
		if there, err := t.write.Exists(f, nftables.TrafficTable); err == nil && !there {
			return t.failed == nil
		}
	}
	return false
}

// settle remembers the end of a write. After one that failed the next is of everything.
func (t *traffic) settle(err error) {
	if err != nil && t.failed == nil {
		t.log.Error("the counters of services are not right", "err", err)
	}
	t.failed = err
}

func nftFamily(k service.Key) desired.NFTFamily {
	if k.Addr.Is4() {
		return desired.NFTIPv4
	}
	return desired.NFTIPv6
}

// all returns what came through each frontend on this node.
func (t *traffic) all() (map[service.Key]status.Traffic, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	if time.Since(t.at) < trafficAge {
		return t.last, nil
	}
	type setID struct {
		family desired.NFTFamily
		name   string
	}
	sets := map[setID]map[string]nft.Count{}
	for _, f := range t.families {
		for _, s := range nftables.TrafficSkeleton(f).Sets {
			counts, err := t.read.Counts(f, nftables.TrafficTable, s.Name)
			if err != nil {
				return nil, err
			}
			sets[setID{f, s.Name}] = counts
		}
	}
	t.mu.Lock()
	counted := maps.Clone(t.counted)
	t.mu.Unlock()
	out := make(map[service.Key]status.Traffic, len(counted))
	for k := range counted {
		of := func(set string) nft.Count {
			name, key := nftables.TrafficSet(set, k)
			return sets[setID{nftFamily(k), name}][key]
		}
		in, back := of(nftables.SetPacketsIn), of(nftables.SetPacketsOut)
		out[k] = status.Traffic{Connections: of(nftables.SetConnections).Packets, PacketsIn: in.Packets, BytesIn: in.Bytes,
			PacketsOut: back.Packets, BytesOut: back.Bytes}
	}
	t.last, t.at = out, time.Now()
	return out, nil
}

var (
	trafficLabels   = []string{"namespace", "name", "port", "protocol", "kind", "address"}
	descConnections = prometheus.NewDesc("braid_service_connections_total", "Connections that clients began through a frontend of a service on this node.", trafficLabels, nil)
	descPackets     = prometheus.NewDesc("braid_service_packets_total", "Packets that came through a frontend of a service on this node: in from clients, out to clients.", append(trafficLabels, "direction"), nil)
	descBytes       = prometheus.NewDesc("braid_service_bytes_total", "Bytes of these, of IP packets.", append(trafficLabels, "direction"), nil)
)

// Describe implements prometheus.Collector.
func (t *traffic) Describe(ch chan<- *prometheus.Desc) {
	ch <- descConnections
	ch <- descPackets
	ch <- descBytes
}

// Collect implements prometheus.Collector. Frontends that nobody used are left out: most are none of this node's.
func (t *traffic) Collect(ch chan<- prometheus.Metric) {
	all, err := t.all()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descConnections, err)
		return
	}
	t.mu.Lock()
	counted := maps.Clone(t.counted)
	t.mu.Unlock()
	for k, n := range all {
		f, ok := counted[k]
		if !ok || n == (status.Traffic{}) {
			continue
		}
		labels := []string{f.Origin.Namespace, f.Origin.Name, f.PortName, k.Protocol.String(), k.Kind.String(), netip.AddrPortFrom(k.Addr, k.Port).String()}
		counter := func(d *prometheus.Desc, v uint64, more ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append(labels, more...)...)
		}
		counter(descConnections, n.Connections)
		counter(descPackets, n.PacketsIn, "in")
		counter(descPackets, n.PacketsOut, "out")
		counter(descBytes, n.BytesIn, "in")
		counter(descBytes, n.BytesOut, "out")
	}
}

// trafficRemains are tables of counters that an earlier run may have left.
type trafficRemains struct{}

// Name says whose they are.
func (trafficRemains) Name() string { return "service-counters" }

// Cleanup removes them.
func (trafficRemains) Cleanup() (removed []string, err error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var ops []desired.NFTOp
	for _, f := range nftables.Families {
		there, err := conn.Exists(f, nftables.TrafficTable)
		switch {
		case errors.Is(err, os.ErrPermission):
			return nil, err
		case err != nil: // where there is no nftables, nothing of it can be
			return nil, nil
		case there:
			removed = append(removed, fmt.Sprintf("nftables table %s %s", f, nftables.TrafficTable))
			ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: nftables.TrafficTable})
		}
	}
	if err := conn.Apply(ops); err != nil {
		return nil, err
	}
	return removed, nil
}
