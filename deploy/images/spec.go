package main

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
)

// spec is what an image holds and how it is run.
type spec struct {
	name       string
	title      string
	files      []file
	user       string // "uid:gid"; numbers, so that Kubernetes can tell that it is not root
	entrypoint []string
	env        []string
	ports      []string
}

// file is one file of an image: a copy of one on this machine, given contents, or a symbolic link.
type file struct {
	to      string
	from    string // path on this machine
	data    []byte // contents, where from is empty
	link    string // target of the link
	mode    int64  // permissions; 0 = 0755 for a program, else 0644
	program bool   // must be a static executable; sets the image's architecture
	caps    []byte // value of the attribute security.capability; nil = none
}

// content reads the file.
func (f *file) content() ([]byte, error) {
	if f.from != "" {
		return os.ReadFile(f.from)
	}
	return f.data, nil
}

// permissions returns the file's mode.
func (f *file) permissions() int64 {
	switch {
	case f.link != "":
		return 0o777
	case f.mode != 0:
		return f.mode
	case f.program:
		return 0o755
	}
	return 0o644
}

func (s spec) reference(tag string) string { return "docker.io/braidnet/" + s.name + ":" + tag }

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// specs are the images of a release.
func specs(o options) []spec {
	coredns := spec{
		name: "coredns", title: "CoreDNS with Braid's plugin for services and pods",
		files: []file{{from: filepath.Join(o.bin, "coredns"), to: "/coredns", program: true, caps: fileCapability(capNetBindService)}},
		user:  "65532:65532", entrypoint: []string{"/coredns"}, env: []string{"PATH=" + searchPath},
		ports: []string{"53/tcp", "53/udp"},
	}
	if o.roots != "" {
		coredns.files = append(coredns.files, file{from: o.roots, to: "/etc/ssl/certs/ca-certificates.crt"})
	}
	netagent := spec{
		name: "netagent", title: "Braid's node agent and CNI plugin",
		files: []file{
			{from: filepath.Join(o.bin, "netagent"), to: "/usr/local/bin/netagent", program: true},
			{from: filepath.Join(o.bin, "braid"), to: "/usr/local/bin/braid", program: true},
		},
		user: "0:0", entrypoint: []string{"/usr/local/bin/netagent"}, env: []string{"PATH=" + searchPath},
	}
	if len(o.tools) == 0 {
		netagent.env = append(netagent.env, "BRAID_IMAGE=nftables") // lets the agent say why iptables is missing
	}
	netagent.files = append(netagent.files, o.tools...)
	return []spec{coredns, netagent}
}

// capNetBindService is the number of CAP_NET_BIND_SERVICE (linux/capability.h).
const capNetBindService = 10

// fileCapability returns the attribute security.capability that lets a program use one capability from
// its start: struct vfs_cap_data of revision 2 (linux/capability.h), little-endian, with the
// effective flag, one permitted bit and nothing inheritable. `setcap name=+ep` writes the same.
func fileCapability(number uint) []byte {
	const revision2, effective = 0x02000000, 0x000001
	out := make([]byte, 20)
	binary.LittleEndian.PutUint32(out, revision2|effective)
	binary.LittleEndian.PutUint32(out[4+8*(number/32):], 1<<(number%32))
	return out
}

// architectures are the names that images use for the machines of ELF files.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}

// architecture returns the one a program is built for. A program that needs a loader is refused: there
// is none in the image, and the kernel's answer would be that the program does not exist.
func architecture(program string) (string, error) {
	f, err := elf.Open(program)
	if os.IsNotExist(err) {
		return "", fmt.Errorf("%w: run `make build` first", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s is no Linux program: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is linked dynamically: build it with CGO_ENABLED=0", program)
		}
	}
	name, known := architectures[f.Machine]
	if !known {
		return "", fmt.Errorf("%s is built for %s: images are made for amd64 and arm64", program, f.Machine)
	}
	return name, nil
}
