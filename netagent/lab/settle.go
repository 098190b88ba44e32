package lab

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/braidnet/braid/netagent/status"
)

// settlePoll is how often the programs are asked whether they have caught up; nothing announces it.
const settlePoll = 20 * time.Millisecond

// clockTick is the grain of file times: a write may bear a time this much before it happened.
const clockTick = 10 * time.Millisecond

// settle waits until every program has taken in everything that the controller has written: a pod
// that is ready is of no use to a client before its address is in the rules and in the names.
func (d *daemon) settle(ctx context.Context) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		written, err := os.Stat(d.p.cluster())
		if err != nil {
			return err
		}
		if d.caughtUp(ctx, written.ModTime().Add(clockTick)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// caughtUp reports whether every agent has programmed, and every CoreDNS answers from, what was
// written before t.
func (d *daemon) caughtUp(ctx context.Context, t time.Time) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, n := range d.o.nodes() {
		r, err := status.Fetch(ctx, filepath.Join(d.p.node(n.name, "run"), "netagent.sock"))
		if err != nil || !r.OK() || r.Current.Before(t) {
			return false
		}
		for _, s := range r.Subsystems {
			if s.Pending || s.Revision < r.Revision {
				return false
			}
		}
		ns := nsPath(d.p.nodeNS(n.name))
		page, err := get(ctx, "http://"+dnsMetrics+"/metrics", func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialNS(ctx, ns, network, addr)
		})
		// A Corefile of the user's may serve no metrics; its names are then not waited for.
		if err == nil && metric(page, "braid_dns_source_current_timestamp_seconds") < float64(t.UnixMilli())/1000 {
			return false
		}
	}
	return true
}

// dnsMetrics is where Corefile.example serves CoreDNS's metrics.
const dnsMetrics = "127.0.0.1:9153"

func get(ctx context.Context, url string, dial func(context.Context, string, string) (net.Conn, error)) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	return string(page), err
}

// metric reads the first sample of a series from a page of metrics, or 0.
func metric(page, name string) float64 {
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, name+"{"); ok {
			if _, value, ok := strings.Cut(rest, "} "); ok {
				v, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
				return v
			}
		}
	}
	return 0
}
