# A boot sector: SeaBIOS loads it from an NVMe disk. It reads 100 sectors from LBA 1 on by INT 13h, sends the text in
# the last of them and the sum of all their bytes to COM1, and writes its second sector to LBA 200.
.code16
.globl start
start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    movb %dl, drive
    movw $packet, %si
    movb $0x42, %ah
    int $0x13
    jc failed
    movw $0x1000, %ax
    movw %ax, %es
    movw $(99 * 512), %di
print:
    movb %es:(%di), %al
    testb %al, %al
    jz sum
    call put
    incw %di
    jmp print
sum:
    xorl %ebx, %ebx
    xorl %eax, %eax
    xorw %di, %di
add:
    movb %es:(%di), %al
    addl %eax, %ebx
    incw %di
    cmpw $(100 * 512), %di
    jne add
    movw $8, %cx
digit:
    roll $4, %ebx
    movb %bl, %al
    andb $15, %al
    addb $'0', %al
    cmpb $'9', %al
    jbe show
    addb $('a' - '0' - 10), %al
show:
    call put
    loop digit
    movw $written, %si
    movb drive, %dl
    movw $0x4300, %ax
    int $0x13
    jc failed
    movb $'W', %al
    call put
    movb $'\n', %al
    call put
    jmp stop
failed:
    movb $'!', %al
    call put
stop:
    hlt
    jmp stop
put:
    pushw %ax
    movw $0x3fd, %dx
wait:
    inb %dx, %al
    testb $0x20, %al
    jz wait
    popw %ax
    movw $0x3f8, %dx
    outb %al, %dx
    ret
drive:
    .byte 0
.balign 4
packet:
    .byte 16, 0
    .word 100, 0, 0x1000
    .quad 1
written:
    .byte 16, 0
    .word 1, 0, 0x1000
    .quad 200
.org 510
    .word 0xaa55
