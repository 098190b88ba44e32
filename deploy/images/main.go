// Command images packs the built programs into container images: one OCI archive each, which
// `ctr --namespace k8s.io images import`, `podman load` and `docker load` take. It needs neither a
// registry nor Docker. The same programs, packed by the same release of Go, give the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of the programs coredns, netagent and braid, built for Linux without cgo")
	flag.StringVar(&o.out, "out", "bin/images", "folder to write NAME.tar into")
	flag.StringVar(&o.tag, "tag", "dev", "tag of the images")
	flag.StringVar(&o.roots, "ca-certificates", "/etc/ssl/certs/ca-certificates.crt",
		"PEM file of certificate authorities for forwarding over TLS; empty = none")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// options say what to pack and where to put it.
type options struct {
	bin, out, tag, roots string
}

func run(o options) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: try -help", flag.Arg(0))
	}
	created, err := created(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	for _, s := range specs(o) {
		archive, err := build(s, o.tag, created)
		if err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
		path := filepath.Join(o.out, s.name+".tar")
		if err := write(path, archive); err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
		fmt.Printf("%s: %s, %.1f MiB\n", path, s.reference(o.tag), float64(len(archive))/(1<<20))
	}
	return nil
}

// created is the time that images and files in them say they were made: that of the variable
// SOURCE_DATE_EPOCH (reproducible-builds.org, seconds), else the beginning of 1970. A clock would make
// every build another image.
func created(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds since 1970", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// write replaces a file, so that an import never reads half of one.
func write(path string, data []byte) error {
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
