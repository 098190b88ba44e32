package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/status"
)

// cluster writes n Services with an EndpointSlice of two endpoints each, into so many files, and
// returns the name and text of the file that holds the first slice, its endpoint spelled FIRST.
func cluster(b *testing.B, dir string, n, files int) (first, text string) {
	b.Helper()
	docs := make([]strings.Builder, files)
	for i := range n {
		d := &docs[i*files/n]
		endpoint := fmt.Sprintf("10.%d.%d.%d", 128+i>>15, i>>7&255, i<<1&255)
		if i == 0 {
			endpoint = "FIRST"
		}
		fmt.Fprintf(d, `---
apiVersion: v1
kind: Service
metadata: {name: s%[1]d, namespace: default}
spec: {clusterIP: 10.96.%[2]d.%[3]d, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s%[1]d, namespace: default, labels: {kubernetes.io/service-name: s%[1]d}}
addressType: IPv4
ports: [{port: 8080, name: ""}]
endpoints: [{addresses: [%[4]s]}, {addresses: [10.250.%[2]d.%[3]d]}]
`, i, i>>8, i&255, endpoint)
	}
	for i := range docs {
		name := filepath.Join(dir, fmt.Sprintf("part-%d.yaml", i))
		if i == 0 {
			first, text = name, docs[i].String()
		}
		put(b, name, strings.Replace(docs[i].String(), "FIRST", "10.251.0.1", 1))
	}
	return first, text
}

// put replaces a file by renaming, as editors and kubelets do.
func put(b *testing.B, path, text string) {
	b.Helper()
	temp := filepath.Join(filepath.Dir(path), ".new")
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAgent runs a whole agent in service mode nftables on a folder of manifests: from its start
// until it is ready, and from a renamed file until the kernel has another generation.
func BenchmarkAgent(b *testing.B) {
	nstest.RequireRoot(b)
	const services = 5000
	for _, files := range []int{4, services} {
		dir := b.TempDir()
		first, text := cluster(b, dir, services, files)
		run := b.TempDir()
		cfg := DefaultConfig()
		cfg.Node, cfg.Manifests, cfg.RunDir, cfg.StateDir, cfg.CNIConfDir = "n1", dir, run, run, ""
		cfg.Overlay, cfg.ServiceMode, cfg.HTTP, cfg.Log = "none", "nftables", "", slog.New(slog.DiscardHandler)
		b.Run(fmt.Sprintf("start/%d-services-%d-files", services, files), func(b *testing.B) {
			for b.Loop() {
				_, end := beginAgent(b, cfg)
				b.StopTimer()
				end()
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("change/%d-services-%d-files", services, files), func(b *testing.B) {
			conn, end := beginAgent(b, cfg)
			defer end()
			for i := 0; b.Loop(); i++ {
				before := generationOf(b, conn)
				put(b, first, strings.Replace(text, "FIRST", fmt.Sprintf("10.251.0.%d", 2+i%2), 1))
				for generationOf(b, conn) == before {
					time.Sleep(100 * time.Microsecond)
				}
			}
		})
	}
}

// beginAgent runs an agent in a namespace of its own and returns when it is ready, with a look at what
// it writes.
func beginAgent(b *testing.B, cfg Config) (conn *nft.Conn, end func()) {
	b.Helper()
	ns := nstest.New(b)
	ns.Run(b, func() (err error) { conn, err = nft.Open(); return err })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ns.Do(func() error { return Run(ctx, cfg) }) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Socket())
	}}}
	defer client.CloseIdleConnections()
	for {
		var r status.Report
		if resp, err := client.Get("http://agent/status"); err == nil {
			err = json.NewDecoder(resp.Body).Decode(&r)
			resp.Body.Close()
			if err == nil && r.OK() {
				break
			}
		}
		select {
		case err := <-done:
			b.Fatalf("the agent ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	return conn, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		conn.Close()
	}
}

func generationOf(b *testing.B, conn *nft.Conn) uint32 {
	b.Helper()
	g, err := conn.Generation()
	if err != nil {
		b.Fatal(err)
	}
	return g
}
