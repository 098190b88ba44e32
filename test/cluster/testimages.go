package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// debianTools are what upstream's specs and our checks run inside pods, beyond agnhost.
var debianTools = []string{"bind9-dnsutils", "curl", "netcat-openbsd", "iproute2", "iptables", "iputils-ping", "iperf", "conntrack", "nginx-light", "busybox"}

// debianSuite has an iperf that prints what the spec about throughput reads.
const debianSuite = "trixie"

// The images that upstream's network specs name, each as near to its original as files of Debian and
// Kubernetes' own sources make it: one Debian with everybody's tools instead of Alpine, BusyBox and others.
var (
	agnhostNames = []string{
		testImage, e2eRegistry + "agnhost:2.55", e2eRegistry + "busybox:1.37.0-1", e2eRegistry + "glibc-dns-testing:2.0.0",
		"registry.k8s.io/build-image/distroless-iptables:v0.9.6",
	}
	nginxNames = []string{e2eRegistry + "nginx:1.15-4", e2eRegistry + "nginx:1.27-0"}
	boomNames  = []string{e2eRegistry + "regression-issue-74839:1.4"}
	pauseNames = []string{pauseImage, "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10.1"}
)

// stockDNSImage is for `--network stock`.
const stockDNSImage = "registry.k8s.io/coredns/coredns:" + coreDNSVersion

// testArchive holds all test images. Its name follows what they are made of, so that a cache of another
// recipe is not taken for it.
func (o *options) testArchive() string {
	recipe := fmt.Sprint(debianSuite, debianTools, agnhostNames, nginxNames, boomNames, pauseNames, stockDNSImage)
	sum := sha256.Sum256([]byte(recipe))
	return filepath.Join(o.Cache, "images", "test-"+hex.EncodeToString(sum[:4])+".tar")
}

// buildImages makes the test images when the cache lacks them.
func buildImages(ctx context.Context, o *options) error {
	archive := o.testArchive()
	dir := filepath.Dir(archive)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(archive); err == nil {
		return nil
	}
	start := time.Now()
	fmt.Println("building the test images")
	work, err := os.MkdirTemp(dir, "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	layer := func(name string) string { return filepath.Join(work, name) }
	if err := debianLayer(ctx, work, layer("debian")); err != nil {
		return err
	}
	agnhost, err := o.agnhostFiles(ctx)
	if err != nil {
		return err
	}
	for name, files := range map[string]map[string]string{
		"agnhost": agnhost, "pause": {"pause": o.bin("pause")}, "coredns": {"coredns": o.bin(stockDNS.name)},
		"boom": {"regression-issue-74839": o.bin("regression-issue-74839")},
	} {
		if err := fileLayer(layer(name), files); err != nil {
			return err
		}
	}
	err = writeArchive(archive,
		image{names: agnhostNames, entry: []string{"/agnhost"}, cmd: []string{"pause"}, layers: []string{layer("debian"), layer("coredns"), layer("agnhost")}},
		image{names: nginxNames, entry: []string{"nginx", "-g", "daemon off;"}, layers: []string{layer("debian")}},
		image{names: boomNames, entry: []string{"/regression-issue-74839"}, layers: []string{layer("boom")}},
		image{names: pauseNames, entry: []string{"/pause"}, layers: []string{layer("pause")}},
		image{names: []string{stockDNSImage}, entry: []string{"/coredns"}, layers: []string{layer("coredns")}},
	)
	if err != nil {
		return err
	}
	fmt.Printf("built the test images in %s\n", time.Since(start).Round(time.Second))
	return nil
}

// agnhostFiles are the program and the key pair with which its porter serves TLS.
func (o *options) agnhostFiles(ctx context.Context) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-mod=readonly", "-f", "{{.Dir}}", "k8s.io/kubernetes/test/images/agnhost")
	cmd.Dir, cmd.Env = filepath.Join(o.Root, "test/cluster/build/kubernetes"), append(os.Environ(), "GOWORK=off")
	out, err := run(cmd)
	if err != nil {
		return nil, fmt.Errorf("find agnhost's sources: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(out), "porter")
	return map[string]string{
		"agnhost":       o.bin("agnhost"),
		"localhost.crt": filepath.Join(src, "localhost.crt"), "localhost.key": filepath.Join(src, "localhost.key"),
	}, nil
}
